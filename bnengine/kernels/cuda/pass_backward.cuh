// The gradient by x once its sums are known: one pass over x and dy.
// Where the statistics are given and do not depend on x, there are no sums to take part.
extern "C" __global__ void __launch_bounds__(THREADS, MANY ? 2 : 4)
    bnengine_pass_backward(const Vector* __restrict__ dy, const Vector* __restrict__ x, Vector* __restrict__ dx,
                           const float* __restrict__ sum_dy, const float* __restrict__ sum_dy_xhat,
                           const float* __restrict__ mean, const float* __restrict__ rest,
                           const float* __restrict__ var, const float* __restrict__ gamma,
                           const float* __restrict__ beta, const Layout layout, const Options options) {
  Tile tile(layout, gridDim.x - 1 - blockIdx.x);  // from the last: the pass before has left that in the cache
  Channel channel[KEPT];
  Slope slope[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    int c = tile.channel(n);
    if (!tile.stop) continue;
    channel[n] = Channel(Moment(mean, rest, var, c, options), gamma, beta, c, options);
    if (!options.given) slope[n] = Slope(channel[n], sum_dy[c] * options.inv_count, sum_dy_xhat[c] * options.inv_count);
  }
  auto ask = [&](int i) {
    ptrdiff_t at = tile.back(i);
    return Pair{x[at], dy[at]};
  };
  in_turn<AHEAD / 2>(tile, ask, [&](int i, Pair& v) {
#pragma unroll
    for (int n = 0; n < VECTOR; ++n) {
      int c = ROWS ? n : 0;
      float value = (float)v.x.value[n], masked = channel[c].masked((float)v.dy.value[n], value, options.relu);
      v.x.value[n] = T(options.given ? channel[c].scale * masked : slope[c].dx(channel[c], masked, value));
    }
    dx[tile.back(i)] = v.x;
  });
}
