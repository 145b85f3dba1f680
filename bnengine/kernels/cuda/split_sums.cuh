// Gradient sums of tiles that several blocks share.

extern "C" __global__ void __launch_bounds__(THREADS, MANY ? 2 : 3)
    bnengine_split_sums(const Vector* __restrict__ dy, const Vector* __restrict__ x, float* shares,
                        unsigned int* tickets, float* sum_dy, float* sum_dy_xhat, const float* __restrict__ mean,
                        const float* __restrict__ rest, const float* __restrict__ var,
                        const float* __restrict__ gamma, const float* __restrict__ beta, const Layout layout,
                        const Options options) {
  extern __shared__ uint4 memory[];
  Tile tile(layout);
  float* scratch = (float*)memory;
  Channel channel[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    int c = tile.channel(n);
    if (tile.stop) channel[n] = Channel(Moment(mean, rest, var, c, options), gamma, beta, c, options);
  }
  float sum[2 * KEPT] = {};
  for (int i = tile.first; i < tile.stop; i += BATCH / 2 * tile.step) {
    Vector v[BATCH / 2], g[BATCH / 2];
    float batch[2 * KEPT] = {};  // summed first: rounding then grows with the batches, not with the values
#pragma unroll
    for (int b = 0; b < BATCH / 2; ++b) {
      ptrdiff_t at = tile.at(min(i + b * tile.step, tile.stop - 1));  // no branch between the loads
      v[b] = x[at], g[b] = dy[at];
    }
#pragma unroll
    for (int b = 0; b < BATCH / 2; ++b) {
      if (i + b * tile.step >= tile.stop) continue;
#pragma unroll
      for (int n = 0; n < VECTOR; ++n) {
        int c = ROWS ? n : 0;
        float value = (float)v[b].value[n], masked = channel[c].masked((float)g[b].value[n], value, options.relu);
        batch[c] += masked;
        batch[KEPT + c] += masked * channel[c].xhat(value);
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * KEPT; ++n) sum[n] += batch[n];
  }
  all_sum(sum, tile, scratch);
  float* results[2] = {sum_dy, sum_dy_xhat};
  if (layout.parts > 1) {
    auto share = [&](int s, int n) {
      return shares + ((ptrdiff_t)s * 2 + n / KEPT) * layout.channels + tile.channel(n % KEPT);
    };
#pragma unroll
    for (int n = 0; n < 2 * KEPT; ++n) {
      if (tile.writes()) *share(tile.part, n) = sum[n];
    }
    if (!last_of(tile, tickets)) return;
#pragma unroll
    for (int n = 0; n < 2 * KEPT; ++n) {
      sum[n] = 0;
      for (int s = threadIdx.x / layout.lanes; tile.stop && s < layout.parts; s += THREADS / layout.lanes)
        sum[n] += __ldcg(share(s, n));
    }
    all_sum(sum, tile, scratch);
  }
#pragma unroll
  for (int n = 0; n < 2 * KEPT; ++n) {
    if (tile.writes()) results[n / KEPT][tile.channel(n % KEPT)] = sum[n];
  }
}
