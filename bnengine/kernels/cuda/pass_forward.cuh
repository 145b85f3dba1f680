// Normalise with statistics that are known: one pass over x.

extern "C" __global__ void __launch_bounds__(THREADS, MANY ? 2 : ROWS && sizeof(Vector) < 4 ? 3 : 4)
    bnengine_pass_forward(const Vector* __restrict__ x, Vector* __restrict__ y, const float* __restrict__ mean,
                          const float* __restrict__ rest, const float* __restrict__ var,
                          const float* __restrict__ gamma, const float* __restrict__ beta, const Layout layout,
                          const Options options) {
  Tile tile(layout, gridDim.x - 1 - blockIdx.x);  // from the last: the pass before has left that in the cache
  Channel channel[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    int c = tile.channel(n);
    if (tile.stop) channel[n] = Channel(Moment(mean, rest, var, c, options), gamma, beta, c, options);
  }
  auto ask = [&](int i) { return x[tile.back(i)]; };
  in_turn<AHEAD>(tile, ask, [&](int i, Vector& v) {
#pragma unroll
    for (int n = 0; n < VECTOR; ++n)
      v.value[n] = T(channel[ROWS ? n : 0].activated((float)v.value[n], options.relu));
    y[tile.back(i)] = v;
  });
}
