// What CUDA's device functions do on the host: the second half of device.hpp.

static inline void __syncthreads() { host::pause(host::AT_BLOCK); }
static inline void __syncwarp(unsigned = ~0u) { host::pause(host::AT_WARP); }
static inline void __threadfence() {}
template <typename T>
static T __ldcg(const T* at) {
  return *at;
}
static inline unsigned atomicAdd(unsigned* at, unsigned value) {
  unsigned before = *at;
  *at += value;
  return before;
}

// What the device code itself defines where clusters exist.
static inline void cluster_arrive() { host::arrive(); }
static inline void cluster_wait() { host::await_all(); }
static inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
static inline unsigned cluster_rank() { return host::rank_of(host::current); }
template <typename T>
static T* cluster_peer(T* here, unsigned rank) {
  return host::peer(here, rank);
}

template <typename T>
static T __shfl_sync(unsigned, T value, int lane, int = 32) {
  return host::shuffled(value, lane);
}
template <typename T>
static T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return host::shuffled(value, (int)threadIdx.x % 32 ^ mask);
}
template <typename T>
static T __shfl_down_sync(unsigned, T value, int delta, int = 32) {
  return host::shuffled(value, (int)threadIdx.x % 32 + delta);
}

// A clock that runs ahead, so that whoever waits by it waits for little.
static inline long long clock64() {
  static long long now = 0;
  return now += 1 << 20;
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline float __int_as_float(int x) {
  float result;
  memcpy(&result, &x, sizeof result);
  return result;
}
static inline double __longlong_as_double(long long x) {
  double result;
  memcpy(&result, &x, sizeof result);
  return result;
}
