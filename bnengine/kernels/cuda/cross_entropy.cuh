// Softmax cross-entropy with its gradient in one launch: a warp takes a row, the block that comes last the mean.
// T is the type of logits, which lie row by row; THREADS is defined in front.

typedef wide<T>::type M;

static constexpr int WARPS = THREADS / 32;

struct Larger {
  __device__ M operator()(M a, M b) const { return b > a ? b : a; }  // NaN shows in the sum of exponentials
};
struct Sum {
  __device__ M operator()(M a, M b) const { return a + b; }
};

// Of all lanes, in every lane.
template <typename Join>
__device__ M joined(M value, Join join) {
  for (int offset = 16; offset; offset /= 2) value = join(value, __shfl_xor_sync(0xffffffff, value, offset));
  return value;
}

// The loss of one row, log(sum(exp(z))) - z[label], and its gradient (softmax(z) - onehot) / rows. A label outside
// the classes makes both NaN.
__device__ M one_row(const T* z, T* dz, long long label, long long rows, long long classes) {
  int lane = threadIdx.x % 32;
  M top = -CUDART_INF, total = 0;
  for (long long k = lane; k < classes; k += 32) top = Larger()(top, (M)z[k]);
  top = joined(top, Larger());
  for (long long k = lane; k < classes; k += 32) total += exp((M)z[k] - top);
  total = joined(total, Sum());
  bool outside = label < 0 || label >= classes;
  for (long long k = lane; k < classes; k += 32) {
    M hot = outside ? M(CUDART_NAN) : M(label == k);
    dz[k] = T((exp((M)z[k] - top) / total - hot) / (M)rows);
  }
  return outside ? M(CUDART_NAN) : log(total) - ((M)z[label] - top);
}

// One block on a multiprocessor will do: to make room for more, the compiler would spill registers.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    bnengine_cross_entropy(const T* __restrict__ z, const long long* __restrict__ labels, T* __restrict__ dz, M* shares,
                           unsigned* ticket, M* loss, const long long rows, const long long classes) {
  __shared__ M parts[WARPS];
  __shared__ unsigned place[1];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  M mine = 0;
  for (long long row = (long long)blockIdx.x * WARPS + warp; row < rows; row += (long long)gridDim.x * WARPS)
    mine += one_row(z + row * classes, dz + row * classes, labels[row], rows, classes);
  if (lane == 0) parts[warp] = mine;
  __syncthreads();
  if (warp) return;
  mine = joined(lane < WARPS ? parts[lane] : M(0), Sum());
  if (gridDim.x > 1) {
    if (lane == 0) {
      shares[blockIdx.x] = mine;
      __threadfence();
      place[0] = atomicAdd(ticket, 1u);
      __threadfence();
    }
    __syncwarp();
    if (place[0] != gridDim.x - 1) return;
    mine = 0;
    for (unsigned b = lane; b < gridDim.x; b += 32) mine += __ldcg(shares + b);
    mine = joined(mine, Sum());
  }
  if (lane == 0) *loss = mine / (M)rows;
}
