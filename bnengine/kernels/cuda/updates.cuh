// Optimisers on the device: one launch updates the leaves of a list where they lie.
// P, G and S are the types of parameters, gradients and slots; RULE, LEAVES and CHUNK are defined in front.

typedef wide<P>::type M;

static constexpr int AT_ONCE = 4;  // values that a thread loads before it uses the first of them

struct Leaf {
  P* p;
  const G* g;
  S* first;
  S* second;
  long long size;
  M decay;   // weight decay as L2
  M shrink;  // the factor of decoupled decay
};

// The leaves of a launch, passed by value: no table to copy, and nothing that a captured graph could lose.
struct Leaves {
  Leaf leaf[LEAVES];
  unsigned int end[LEAVES];  // blocks of this leaf and those before it
};

// One parameter while it is in registers.
struct Value {
  M p, g, first, second;
};

// Zero decay leaves the gradient alone even where the parameter is infinite.
__device__ M decayed(const Value& v, M decay) { return decay == 0 ? v.g : v.g + decay * v.p; }

// ---- the rules; their fields are the scalars of a call, in this order

struct sgd {
  static constexpr int SLOTS = 0;
  M rate;

  __device__ void operator()(Value& v, const Leaf& leaf) const { v.p -= rate * decayed(v, leaf.decay); }
};

struct momentum {
  static constexpr int SLOTS = 1;
  M rate, keep, nesterov;

  __device__ void operator()(Value& v, const Leaf& leaf) const {
    M g = decayed(v, leaf.decay);
    v.first = keep * v.first + g;
    v.p -= rate * (nesterov != 0 ? g + keep * v.first : v.first);
  }
};

struct rmsprop {
  static constexpr int SLOTS = 1;
  M rate, keep, add, eps;

  __device__ void operator()(Value& v, const Leaf& leaf) const {
    M g = decayed(v, leaf.decay);
    v.first = keep * v.first + add * (g * g);
    v.p -= rate * g / (sqrt(v.first) + eps);
  }
};

struct adam {
  static constexpr int SLOTS = 2;
  M step, keep1, add1, keep2, add2, eps, root;

  __device__ void operator()(Value& v, const Leaf& leaf) const {
    M g = decayed(v, leaf.decay);
    v.first = keep1 * v.first + add1 * g;
    v.second = keep2 * v.second + add2 * (g * g);
    M p = leaf.shrink == 1 ? v.p : v.p * leaf.shrink;
    v.p = p - step * v.first / (sqrt(v.second) / root + eps);
  }
};

// ---- the launch: a block updates CHUNK values of one leaf

__device__ Value read(const Leaf& leaf, long long i) {
  Value v = {(M)leaf.p[i], (M)leaf.g[i], 0, 0};
  if (RULE::SLOTS > 0) v.first = (M)leaf.first[i];
  if (RULE::SLOTS > 1) v.second = (M)leaf.second[i];
  return v;
}

__device__ void write(const Leaf& leaf, long long i, const Value& v) {
  leaf.p[i] = P(v.p);
  if (RULE::SLOTS > 0) leaf.first[i] = S(v.first);
  if (RULE::SLOTS > 1) leaf.second[i] = S(v.second);
}

extern "C" __global__ void __launch_bounds__(256) bnengine_update(const Leaves leaves, const RULE rule) {
  int k = 0;
  while (blockIdx.x >= leaves.end[k]) ++k;
  const Leaf leaf = leaves.leaf[k];
  long long start = (long long)(blockIdx.x - (k ? leaves.end[k - 1] : 0)) * CHUNK;
  long long stop = min(start + CHUNK, leaf.size);
  Value v[AT_ONCE];
  for (long long i = start + threadIdx.x; i < stop; i += AT_ONCE * blockDim.x) {
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      long long j = i + n * blockDim.x;
      if (j < stop) v[n] = read(leaf, j);
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      long long j = i + n * blockDim.x;
      if (j >= stop) continue;
      rule(v[n], leaf);
      write(leaf, j, v[n]);
    }
  }
}
