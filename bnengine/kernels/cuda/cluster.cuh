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
__device__ inline unsigned int cluster_rank() { return 0; }
template <typename V>
__device__ V* cluster_peer(V* here, unsigned int) {
  return here;
}
#endif
#endif
