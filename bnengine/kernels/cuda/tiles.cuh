// What the kernels on wide loads share: which values a thread visits, its channels, and sums over a tile.
// T is the type in memory and VECTOR the number of values of a load. Memory is (outer, channels, inner): with ROWS
// the channels lie beside each other (inner is 1), else the values of a plane do. Arithmetic is in float.

static constexpr int WARPS = THREADS / 32;
static constexpr int KEPT = ROWS ? VECTOR : 1;  // channels that a thread has values of

struct alignas(sizeof(T) * VECTOR) Vector {
  T value[VECTOR];
};

// A tile is a channel, or with ROWS as many vectors of channels as there are lanes; `parts` blocks share it.
struct Layout {
  int channels;
  int vectors;  // of a row, or of a plane
  int items;    // vectors of a channel, or of a lane
  int lanes;    // threads side by side in a row: a power of two up to 32; 1 without ROWS
  int parts;
  int shift;
  long long factor;  // i / vectors is i * factor >> shift
};

struct Options {
  float inv_count, eps;
  int has_gamma, has_beta, relu, given, has_rest;
};

// Several channels of a half type take twice the registers of others: half as many threads run at once.
static constexpr bool MANY = sizeof(T) == 2 && KEPT > 1;
// Blocks that hold tiles on a multiprocessor.
static constexpr int AT_ONCE = (MANY ? 512 : 1024) / THREADS;
// Vectors that a thread asks for before it uses the first of them, so that a multiprocessor has 40 KiB on their way:
// 64 bytes, more where few threads run, and no more loads than registers allow.
static constexpr int AHEAD = KEPT == 8 ? 6 : sizeof(Vector) < 4 ? 20 : 64 / sizeof(Vector);

// A vector of x with that of dy.
struct Pair {
  Vector x, dy;
};

// The values of one thread: items first, first + step, ... of its lane.
struct Tile {
  Layout layout;
  int index, part, lane, column, first, step, stop;

  __device__ explicit Tile(const Layout& layout) : Tile(layout, blockIdx.x) {}
  __device__ Tile(const Layout& layout, int block) : layout(layout) {
    index = block / layout.parts;
    part = block % layout.parts;
    lane = threadIdx.x & (layout.lanes - 1);
    column = ROWS ? index * layout.lanes + lane : index;
    step = layout.parts * (THREADS / layout.lanes);
    first = start() + threadIdx.x / layout.lanes;
    stop = !ROWS || column < layout.vectors ? layout.items : 0;
  }

  __device__ int start() const { return part * (THREADS / layout.lanes); }  // the block's first item

  __device__ ptrdiff_t at(int i) const {
    if (ROWS) return (ptrdiff_t)i * layout.vectors + column;
    int n = (int)(i * layout.factor >> layout.shift);
    return ((ptrdiff_t)n * layout.channels + column) * layout.vectors + (i - n * layout.vectors);
  }

  __device__ ptrdiff_t back(int i) const { return at(layout.items - 1 - i); }  // items counted from the last

  __device__ int channel(int k) const { return ROWS ? column * VECTOR + k : column; }
  __device__ bool writes() const { return threadIdx.x < layout.lanes && stop > 0; }  // one thread for each lane
};

// Takes the thread's items in turn, so many of which are asked for before the first is used. Written out: the compiler
// leaves one load in flight where it does not know a loop's number of turns and values are converted in assembly.
template <int COUNT, typename Ask, typename Take>
__device__ inline void in_turn(const Tile& tile, Ask ask, Take take) {
  decltype(ask(0)) v[COUNT];
  int i = tile.first;
  for (; i + (COUNT - 1) * tile.step < tile.stop; i += COUNT * tile.step) {
#pragma unroll
    for (int b = 0; b < COUNT; ++b) v[b] = ask(i + b * tile.step);
#pragma unroll
    for (int b = 0; b < COUNT; ++b) take(i + b * tile.step, v[b]);
  }
  if (i >= tile.stop) return;
#pragma unroll
  for (int b = 0; b < COUNT; ++b) v[b] = ask(min(i + b * tile.step, tile.stop - 1));  // no branch between the loads
#pragma unroll
  for (int b = 0; b < COUNT; ++b) {
    if (i + b * tile.step < tile.stop) take(i + b * tile.step, v[b]);
  }
}

// mean + rest = a + b without rounding (Knuth's two-sum).
__device__ inline void two_sum(float a, float b, float& mean, float& rest) {
  mean = a + b;
  float part = mean - a;
  rest = (a - (mean - part)) + (b - part);
}

struct Moment {
  float mean, rest, var;

  __device__ Moment() {}
  __device__ Moment(const float* mean, const float* rest, const float* var, int c, const Options& options)
      : mean(mean[c]), rest(options.has_rest ? rest[c] : 0), var(var[c]) {}
};

// A channel with its statistics and parameters, folded.
struct Channel {
  float mean, rest, inv_std, scale, shift;

  __device__ Channel() {}
  __device__ Channel(const Moment& m, const float* gamma, const float* beta, int c, const Options& options)
      : mean(m.mean), rest(m.rest) {
    inv_std = 1 / sqrt(m.var + options.eps);
    scale = options.has_gamma ? gamma[c] * inv_std : inv_std;
    shift = fma(-rest, scale, options.has_beta ? beta[c] : 0.0f);
  }

  // x - mean first: it is exact where both are close. The explicit fma gives forward pass and mask the same bits.
  __device__ float affine(float x) const { return fma(x - mean, scale, shift); }
  __device__ float xhat(float x) const { return ((x - mean) - rest) * inv_std; }
  __device__ float activated(float x, bool relu) const {
    float y = affine(x);
    return relu && y <= 0 ? 0 : y;  // <= and not >: NaN stays NaN
  }
  __device__ float masked(float dy, float x, bool relu) const { return relu && affine(x) <= 0 ? 0 : dy; }
};

// dx = scale * (dy - sum(dy) / n - xhat * sum(dy * xhat) / n) as a line in dy and x - mean.
struct Slope {
  float by_x, constant;

  __device__ Slope() {}
  __device__ Slope(const Channel& c, float mean_dy, float mean_dy_xhat) {
    by_x = -c.scale * c.inv_std * mean_dy_xhat;
    constant = fma(-by_x, c.rest, -c.scale * mean_dy);
  }

  __device__ float dx(const Channel& c, float dy, float x) const {
    return fma(c.scale, dy, fma(by_x, x - c.mean, constant));
  }
};

// Sums of every thread's values over its tile, for each lane; all threads of all blocks of a cluster get them.
// Always in the same order: same input, same bits. Moves scratch on, so that the next sum has its own.
template <int N>
__device__ void all_sum(float (&value)[N], const Tile& tile, float*& scratch) {
  int lanes = tile.layout.lanes, columns = lanes * N, warp = threadIdx.x / 32;
  float *part = scratch + WARPS * columns, *total = part + columns;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    for (int offset = 16; offset >= lanes; offset /= 2) value[n] += __shfl_xor_sync(0xffffffff, value[n], offset);
    if (threadIdx.x % 32 < lanes) scratch[warp * columns + n * lanes + tile.lane] = value[n];
  }
  __syncthreads();
  for (int t = threadIdx.x; t < columns; t += THREADS) {
    float sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += scratch[w * columns + t];
    (CLUSTER > 1 ? part : total)[t] = sum;
  }
  if (CLUSTER > 1) {
    cluster_sync();
    for (int t = threadIdx.x; t < columns; t += THREADS) {
      float sum = 0;
      for (int rank = 0; rank < CLUSTER; ++rank) sum += *cluster_peer(part + t, rank);
      total[t] = sum;
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) value[n] = total[n * lanes + tile.lane];
  scratch = total + columns;
}

// What lies behind the scratch of so many sums for each channel that a thread has values of: this thread's own
// vectors, one in every THREADS, so that no barrier stands between storing and loading them.
__device__ inline Vector* behind_sums(uint4* memory, const Tile& tile, int sums) {
  int bytes = sums * KEPT * tile.layout.lanes * (WARPS + 2) * sizeof(float);
  return (Vector*)(memory + (bytes + 15) / 16) + threadIdx.x;
}
