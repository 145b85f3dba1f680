// Statistics and gradient sums of tiles too large to hold: every block takes its part of a tile and leaves a share,
// and the block that comes last makes the result of all shares, in their order.

// Vectors that a thread loads before it uses the first of them.
static constexpr int BATCH = KEPT == 8 ? 6 : VECTOR > 4 ? 4 : sizeof(Vector) > 4 ? 8 : 16;

// Whether this block is the last of its tile; then all shares are there to be read (past the caches of this
// multiprocessor, which may hold what was there before).
__device__ inline bool last_of(const Tile& tile, unsigned int* tickets) {
  __shared__ unsigned ticket[1];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) ticket[0] = atomicAdd(tickets + tile.index, 1u);
  __syncthreads();
  __threadfence();
  return ticket[0] == tile.layout.parts - 1;
}
