// Normalise with statistics that are known: one pass over x.

extern "C" __global__ void __launch_bounds__(THREADS)
    bnengine_pass_forward(const Vector* __restrict__ x, Vector* __restrict__ y, const float* __restrict__ mean,
                          const float* __restrict__ rest, const float* __restrict__ var,
                          const float* __restrict__ gamma, const float* __restrict__ beta, const Layout layout,
                          const Options options) {
  Tile tile(layout);
  Channel channel[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    int c = tile.channel(n);
    if (tile.stop) channel[n] = Channel(Moment{mean[c], rest[c], var[c]}, gamma, beta, c, options);
  }
#pragma unroll 4
  for (int i = tile.first; i < tile.stop; i += tile.step) {
    ptrdiff_t at = tile.at(i);
    Vector v = x[at];
#pragma unroll
    for (int n = 0; n < VECTOR; ++n)
      v.value[n] = T(channel[ROWS ? n : 0].activated((float)v.value[n], options.relu));
    y[at] = v;
  }
}
