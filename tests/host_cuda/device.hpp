// Runs CUDA kernels on the host, one fiber for each thread of a block, one block at a time.
//
// A fiber runs until it reaches a barrier or its end, then the schedule chooses the next one. Shared memory is
// filled with NaN before each block. What this cannot show: see docs/cuda.md.
#pragma once
#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <vector_functions.h>
#include <vector_types.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// ---- the language

#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __host__
#undef __launch_bounds__
#undef __shared__
#define __constant__ static const
#define __device__
#define __forceinline__ inline
#define __global__
#define __host__
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __CUDACC_VER_MAJOR__ 13  // CuPy's float16 then is the one of cuda_fp16.h

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

static dim3 blockDim, gridDim;
static uint3 blockIdx, threadIdx;
static const int warpSize = 32;

namespace host {

enum Error { NONE, PARTIAL_BARRIER, DEADLOCK, OUTSIDE_ARRAY };
enum Wait { RUNNING, AT_WARP, AT_BLOCK, DONE };
enum Schedule { LOWEST, HIGHEST, ROTATING, RANDOM };

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  Wait wait;
  uint64_t slot;  // what its lane offers to a shuffle
};

static const size_t STACK = 64 * 1024;
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int current, threads, block_number;
static unsigned random_state;
static Error error;
static void (*kernel)(void**);
static void** arguments;

static uint3 thread_index(int t) {
  return uint3{t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

static unsigned random_below(unsigned n) {
  random_state = random_state * 1664525u + 1013904223u;
  return (random_state >> 8) % n;
}

// ---- fibers

static void body() {
  kernel(arguments);
  fibers[current].wait = DONE;
  swapcontext(&fibers[current].context, &scheduler);
}

static void prepare() {
  if ((int)fibers.size() < threads) fibers.resize(threads);
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    if (!fiber.stack) fiber.stack = aligned_alloc(64, STACK);
    fiber.wait = RUNNING;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, body, 0);
  }
}

static void resume(int t) {
  current = t;
  threadIdx = thread_index(t);
  swapcontext(&scheduler, &fibers[t].context);
}

static void pause(Wait wait) {
  int me = current;
  fibers[me].wait = wait;
  swapcontext(&fibers[me].context, &scheduler);
}

// Let the threads from..to go on if every live one of them is at the barrier; answers whether it did.
static bool release(int from, int to, Wait barrier) {
  int live = 0, waiting = 0;
  for (int t = from; t < to; ++t) {
    live += fibers[t].wait != DONE;
    waiting += fibers[t].wait == barrier;
  }
  if (!waiting || waiting < live) return false;
  if (barrier == AT_BLOCK && live < to - from) error = PARTIAL_BARRIER;
  for (int t = from; t < to; ++t) {
    if (fibers[t].wait == barrier) fibers[t].wait = RUNNING;
  }
  return true;
}

static bool release_barriers(int t) {
  int warp = t / warpSize * warpSize;
  return release(warp, min(warp + warpSize, threads), AT_WARP) || release(0, threads, AT_BLOCK);
}

// LOWEST and HIGHEST let the first or last warp run as far ahead as barriers allow.
static int next_thread(Schedule schedule) {
  int start = schedule == ROTATING ? current + 1 : schedule == RANDOM ? random_below(threads) : 0;
  for (int k = 0; k < threads; ++k) {
    int t = schedule == HIGHEST ? threads - 1 - k : (start + k) % threads;
    if (fibers[t].wait == RUNNING) return t;
  }
  return -1;
}

static void run_fibers(Schedule schedule) {
  prepare();
  current = -1;
  for (int t; error == NONE && (t = next_thread(schedule)) >= 0;) {
    resume(t);
    release_barriers(t);
  }
  for (int t = 0; t < threads; ++t) {
    if (error == NONE && fibers[t].wait != DONE) error = DEADLOCK;
  }
}

// A kernel without barriers needs no fibers, only an order.
static void run_in_order(Schedule schedule) {
  std::vector<int> order(threads);
  for (int t = 0; t < threads; ++t) order[t] = schedule == HIGHEST ? threads - 1 - t : t;
  for (int t = threads - 1; schedule == RANDOM && t > 0; --t) std::swap(order[t], order[random_below(t + 1)]);
  for (int t : order) {
    threadIdx = thread_index(t);
    kernel(arguments);
  }
}

// ---- memory

// An index inside an array of this size; one outside is noted and replaced.
static ptrdiff_t inside(ptrdiff_t index, ptrdiff_t size) {
  if (index >= 0 && index < size) return index;
  error = OUTSIDE_ARRAY;
  return 0;
}

// The block's array of a __shared__ declaration, full of NaN when its first thread comes to it.
template <typename Array, int declaration>
static Array& shared() {
  alignas(128) static char memory[sizeof(Array)];
  static int filled_for = -1;
  if (filled_for != block_number) memset(memory, 0xff, sizeof memory);
  filled_for = block_number;
  return reinterpret_cast<Array&>(memory);
}

// ---- shuffles: every lane offers its value, then every lane reads

template <typename T>
static T shuffled(T value, int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  int warp = current / warpSize * warpSize, source = warp + lane;
  memcpy(&fibers[current].slot, &value, sizeof value);
  pause(AT_WARP);
  if (lane >= 0 && lane < warpSize && source < threads) memcpy(&value, &fibers[source].slot, sizeof value);
  pause(AT_WARP);
  return value;
}

static int launch(void (*entry)(void**), void** args, const unsigned* grid, const unsigned* block, int schedule,
                  int with_fibers) {
  gridDim = dim3(grid[0], grid[1], grid[2]);
  blockDim = dim3(block[0], block[1], block[2]);
  kernel = entry;
  arguments = args;
  threads = blockDim.x * blockDim.y * blockDim.z;
  random_state = 1;
  error = NONE;
  unsigned blocks = grid[0] * grid[1] * grid[2];
  for (unsigned k = 0; k < blocks && error == NONE; ++k) {
    unsigned b = schedule == HIGHEST ? blocks - 1 - k : k;  // nothing promises an order of blocks either
    blockIdx = uint3{b % grid[0], b / grid[0] % grid[1], b / (grid[0] * grid[1])};
    ++block_number;
    with_fibers ? run_fibers((Schedule)schedule) : run_in_order((Schedule)schedule);
  }
  return error;
}

}  // namespace host

// ---- intrinsics

static inline void __syncthreads() { host::pause(host::AT_BLOCK); }
static inline void __syncwarp(unsigned = ~0u) { host::pause(host::AT_WARP); }
template <typename T>
static T __shfl_sync(unsigned, T value, int lane, int = 32) {
  return host::shuffled(value, lane);
}
template <typename T>
static T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return host::shuffled(value, host::current % 32 ^ mask);
}
template <typename T>
static T __shfl_down_sync(unsigned, T value, int delta, int = 32) {
  return host::shuffled(value, host::current % 32 + delta);
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
