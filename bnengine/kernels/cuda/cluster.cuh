// Clusters: blocks that see each other's shared memory, from sm_90 on. A cluster of one needs none of it.

#if CLUSTER > 1
#define IN_CLUSTERS __cluster_dims__(CLUSTER, 1, 1)
#else
#define IN_CLUSTERS
#endif

#ifdef __CUDA_ARCH__  // the host's harness defines these itself
#if CLUSTER > 1
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The two halves of a barrier that only keeps this block's shared memory until the others have read it: nothing that
// was stored has to be seen by anybody, so nobody waits for it.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

__device__ inline unsigned int cluster_rank() {
  unsigned int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Where the block of that rank has what this one has at `here` in its shared memory.
template <typename V>
__device__ V* cluster_peer(V* here, unsigned int rank) {
  V* there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(rank));
  return there;
}
#else
__device__ inline void cluster_sync() { __syncthreads(); }
__device__ inline void cluster_arrive() {}
__device__ inline void cluster_wait() {}
__device__ inline unsigned int cluster_rank() { return 0; }
template <typename V>
__device__ V* cluster_peer(V* here, unsigned int) {
  return here;
}
#endif
#endif
