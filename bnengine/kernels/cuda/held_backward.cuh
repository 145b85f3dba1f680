// The backward pass that reads x and dy once: a block, or a cluster of blocks, holds a tile in shared memory.

extern "C" __global__ void IN_CLUSTERS __launch_bounds__(THREADS, AT_ONCE)
    bnengine_held_backward(const Vector* __restrict__ dy, const Vector* __restrict__ x, Vector* __restrict__ dx,
                           float* sum_dy, float* sum_dy_xhat, const float* __restrict__ mean,
                           const float* __restrict__ rest, const float* __restrict__ var,
                           const float* __restrict__ gamma, const float* __restrict__ beta, const Layout layout,
                           const Options options) {
  extern __shared__ uint4 memory[];
  Tile tile(layout);
  float* scratch = (float*)memory;
  Vector* held = behind_sums(memory, tile, 2);
  Channel channel[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    int c = tile.channel(n);
    if (tile.stop) channel[n] = Channel(Moment(mean, rest, var, c, options), gamma, beta, c, options);
  }
  float sum[2 * KEPT] = {};
  int k = 0;
  auto ask = [&](int i) {
    ptrdiff_t at = tile.at(i);
    return Pair{x[at], dy[at]};
  };
  in_turn<AHEAD / 2>(tile, ask, [&](int, Pair& v) {
#pragma unroll
    for (int n = 0; n < VECTOR; ++n) {
      int c = ROWS ? n : 0;
      float masked = channel[c].masked((float)v.dy.value[n], (float)v.x.value[n], options.relu);
      v.dy.value[n] = T(masked);  // dy or zero: nothing is rounded
      sum[c] += masked;
      sum[KEPT + c] += masked * channel[c].xhat((float)v.x.value[n]);
    }
    held[k * THREADS] = v.x;
    held[(k + 1) * THREADS] = v.dy;
    k += 2;
  });
  all_sum(sum, tile, scratch);
  if (CLUSTER > 1) cluster_arrive();  // this block has read all that it reads of the others' memory
  Slope slope[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    slope[n] = Slope(channel[n], sum[n] * options.inv_count, sum[KEPT + n] * options.inv_count);
    if (!tile.writes() || tile.part) continue;
    sum_dy[tile.channel(n)] = sum[n];
    sum_dy_xhat[tile.channel(n)] = sum[KEPT + n];
  }
  k = 0;
#pragma unroll 2
  for (int i = tile.first; i < tile.stop; i += tile.step, k += 2) {
    Vector v = held[k * THREADS], g = held[(k + 1) * THREADS];
#pragma unroll
    for (int n = 0; n < VECTOR; ++n) {
      int c = ROWS ? n : 0;
      v.value[n] = T(slope[c].dx(channel[c], (float)g.value[n], (float)v.value[n]));
    }
    dx[tile.at(i)] = v;
  }
  if (CLUSTER > 1) cluster_wait();  // another block may still be reading this one's sums
}
