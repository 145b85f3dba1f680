// Runs CUDA kernels on the host, one fiber for each thread, one cluster of blocks at a time.
//
// A fiber runs until it reaches a barrier or its end, then the schedule chooses the next one. A block's shared
// memory is filled with NaN before it and after it. What this cannot show: see docs/cuda.md.
#pragma once
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
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
#define __cluster_dims__(...)
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

enum Error { NONE, PARTIAL_BARRIER, DEADLOCK, OUTSIDE_ARRAY, ENDLESS, OUTSIDE_CLUSTER };
enum Wait { RUNNING, AT_WARP, AT_BLOCK, AT_CLUSTER, DONE };
enum Schedule { LOWEST, HIGHEST, ROTATING, RANDOM };

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  Wait wait;
  int phase;      // of the cluster's barrier, when it arrived there
  uint64_t slot;  // what its lane offers to a shuffle
};

static const size_t STACK = 64 * 1024;
static const int LARGEST_CLUSTER = 8;
static std::vector<Fiber> fibers;
static ucontext_t scheduler, stopped;
static pthread_t launcher;
static int current, threads, cluster, first_block;
static int arrived, phase;  // at the cluster's barrier: how many, and how often all have been
static unsigned random_state;
static volatile Error error;
static void (*kernel)(void**);
static void** arguments;

static std::vector<int> ready_in_warp, ready_in_block;  // fibers that could run
static int ready;

static int rank_of(int t) { return t / threads; }  // of a fiber's block in its cluster
static int warps() { return (threads + warpSize - 1) / warpSize; }
static int warp_of(int t) { return rank_of(t) * warps() + t % threads / warpSize; }
static int warp_start(int t) { return t - t % threads % warpSize; }
static int warp_stop(int t) { return min(warp_start(t) + warpSize, (rank_of(t) + 1) * threads); }

static uint3 thread_index(int t) {
  t %= threads;
  return uint3{t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

static uint3 block_index(int b) {
  return uint3{b % gridDim.x, b / gridDim.x % gridDim.y, b / (gridDim.x * gridDim.y)};
}

static unsigned random_below(unsigned n) {
  random_state = random_state * 1664525u + 1013904223u;
  return (random_state >> 8) % n;
}

// ---- memory

// An index inside an array of this size; one outside is noted and replaced.
static ptrdiff_t inside(ptrdiff_t index, ptrdiff_t size) {
  if (index >= 0 && index < size) return index;
  error = OUTSIDE_ARRAY;
  return 0;
}

struct Shared {
  char* start;
  size_t size;
};

static std::vector<Shared> shared_arrays[LARGEST_CLUSTER];  // of each block of a cluster
static char* dynamic[LARGEST_CLUSTER];
static size_t dynamic_size;

static void spoil(int rank) {
  for (Shared& array : shared_arrays[rank]) memset(array.start, 0xff, array.size);
  if (dynamic_size) memset(dynamic[rank], 0xff, dynamic_size);
}

// The block's array of a __shared__ declaration.
template <typename Array, int declaration>
static Array& shared() {
  alignas(128) static char memory[LARGEST_CLUSTER][(sizeof(Array) + 127) / 128 * 128];
  static bool known[LARGEST_CLUSTER];
  int rank = rank_of(current);
  if (!known[rank]) {
    memset(memory[rank], 0xff, sizeof(Array));
    shared_arrays[rank].push_back(Shared{memory[rank], sizeof(Array)});
    known[rank] = true;
  }
  return reinterpret_cast<Array&>(memory[rank]);
}

static char* dynamic_shared() { return dynamic[rank_of(current)]; }

// Where another block of the cluster has what this one has at `here` in its dynamic shared memory.
template <typename T>
static T* peer(T* here, unsigned rank) {
  ptrdiff_t offset = (char*)here - dynamic_shared();
  if (offset < 0 || offset + sizeof(T) > dynamic_size || (int)rank >= cluster) {
    error = OUTSIDE_CLUSTER;
    return here;
  }
  return (T*)(dynamic[rank] + offset);
}

// ---- fibers

static void set_wait(int t, Wait wait) {
  int change = (wait == RUNNING) - (fibers[t].wait == RUNNING);
  fibers[t].wait = wait;
  ready_in_warp[warp_of(t)] += change;
  ready_in_block[rank_of(t)] += change;
  ready += change;
}

static void body() {
  kernel(arguments);
  set_wait(current, DONE);
  setcontext(&scheduler);
}

static void prepare() {
  ready_in_warp.assign(warps() * cluster, 0);
  ready_in_block.assign(cluster, 0);
  ready = arrived = phase = 0;
  if ((int)fibers.size() < threads * cluster) fibers.resize(threads * cluster);
  for (int t = 0; t < threads * cluster; ++t) {
    Fiber& fiber = fibers[t];
    if (!fiber.stack) fiber.stack = aligned_alloc(64, STACK);
    fiber.wait = DONE;
    set_wait(t, RUNNING);
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
  blockIdx = block_index(first_block + rank_of(t));
  swapcontext(&scheduler, &fibers[t].context);
}

static void pause(Wait wait) {
  int me = current;
  set_wait(me, wait);
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
  if (barrier != AT_WARP && live < to - from) error = PARTIAL_BARRIER;
  for (int t = from; t < to; ++t) {
    if (fibers[t].wait == barrier) set_wait(t, RUNNING);
  }
  return true;
}

static void release_barriers(int t) {
  int block = rank_of(t) * threads;
  if (ready_in_warp[warp_of(t)] || release(warp_start(t), warp_stop(t), AT_WARP)) return;
  if (ready_in_block[rank_of(t)] || release(block, block + threads, AT_BLOCK)) return;
  bool over = true;
  for (int k = block; k < block + threads; ++k) over = over && fibers[k].wait == DONE;
  if (over) spoil(rank_of(t));  // no other block may look into its shared memory any more
  bool some_over = false, some_wait = false;
  for (int k = 0; !ready && k < threads * cluster; ++k) {
    some_over = some_over || fibers[k].wait == DONE;
    some_wait = some_wait || fibers[k].wait == AT_CLUSTER;
  }
  if (some_over && some_wait) error = PARTIAL_BARRIER;
}

// The halves of the cluster's barrier: who waits goes on once all have arrived, whether they wait or not.
static void arrive() {
  fibers[current].phase = phase;
  if (++arrived < threads * cluster) return;
  arrived = 0;
  ++phase;
  for (int t = 0; t < threads * cluster; ++t) {
    if (fibers[t].wait == AT_CLUSTER) set_wait(t, RUNNING);
  }
}

static void await_all() {
  if (fibers[current].phase == phase) pause(AT_CLUSTER);
}

// LOWEST and HIGHEST let the first or last warp run as far ahead as barriers allow.
static int next_thread(Schedule schedule) {
  int all = threads * cluster;
  int start = schedule == ROTATING ? current + 1 : schedule == RANDOM ? random_below(all) : 0;
  for (int k = 0; k < all;) {
    int t = schedule == HIGHEST ? all - 1 - k : (start + k) % all;
    if (fibers[t].wait == RUNNING) return t;
    if (ready_in_warp[warp_of(t)]) {
      ++k;
    } else {
      k += schedule == HIGHEST ? t - warp_start(t) + 1 : warp_stop(t) - t;
    }
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
  for (int t = 0; t < threads * cluster; ++t) {
    if (error == NONE && fibers[t].wait != DONE) error = DEADLOCK;
  }
}

// A kernel without barriers needs no fibers, only an order.
static void run_in_order(Schedule schedule) {
  std::vector<int> order(threads);
  for (int t = 0; t < threads; ++t) order[t] = schedule == HIGHEST ? threads - 1 - t : t;
  for (int t = threads - 1; schedule == RANDOM && t > 0; --t) std::swap(order[t], order[random_below(t + 1)]);
  blockIdx = block_index(first_block);
  for (int t : order) {
    current = t;
    threadIdx = thread_index(t);
    kernel(arguments);
  }
}

// ---- shuffles: every lane offers its value, then every lane reads

template <typename T>
static T shuffled(T value, int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  int source = warp_start(current) + lane;
  memcpy(&fibers[current].slot, &value, sizeof value);
  pause(AT_WARP);
  if (lane >= 0 && lane < warpSize && source < warp_stop(current)) memcpy(&value, &fibers[source].slot, sizeof value);
  pause(AT_WARP);
  return value;
}

// ---- launches

// A kernel that loops for ever: back to `launch`, which then answers ENDLESS.
static void out_of_time(int) {
  if (!pthread_equal(pthread_self(), launcher)) {
    pthread_kill(launcher, SIGVTALRM);
    return;
  }
  error = ENDLESS;
  setcontext(&stopped);
}

static void allow(double seconds) {
  signal(SIGVTALRM, seconds > 0 ? out_of_time : SIG_DFL);
  itimerval limit = {{0, 0}, {(time_t)seconds, (suseconds_t)((seconds - (time_t)seconds) * 1e6)}};
  setitimer(ITIMER_VIRTUAL, &limit, nullptr);
}

struct Launch {
  unsigned grid[3], block[3];
  int cluster, shared, schedule, with_fibers;
  double seconds;  // of processor time
};

static void run(const Launch& how) {
  Schedule schedule = (Schedule)how.schedule;
  unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
  for (unsigned k = 0; k < blocks && error == NONE; k += cluster) {
    first_block = schedule == HIGHEST ? blocks - cluster - k : k;  // nothing promises an order of blocks either
    for (int rank = 0; rank < cluster; ++rank) spoil(rank);
    how.with_fibers ? run_fibers(schedule) : run_in_order(schedule);
  }
}

static int launch(void (*entry)(void**), void** args, const Launch& how) {
  gridDim = dim3(how.grid[0], how.grid[1], how.grid[2]);
  blockDim = dim3(how.block[0], how.block[1], how.block[2]);
  kernel = entry;
  arguments = args;
  threads = blockDim.x * blockDim.y * blockDim.z;
  cluster = how.cluster;
  dynamic_size = how.shared;
  for (int rank = 0; rank < cluster; ++rank) {
    if (posix_memalign((void**)&dynamic[rank], 128, how.shared)) abort();
  }
  random_state = 1;
  error = NONE;
  launcher = pthread_self();
  getcontext(&stopped);  // out_of_time comes back here
  if (error == NONE) {
    allow(how.seconds);
    run(how);
  }
  allow(0);
  for (int rank = 0; rank < cluster; ++rank) free(dynamic[rank]);
  return error;
}

}  // namespace host
