// The training forward pass that reads x once: a block, or a cluster of blocks, holds a tile in shared memory.

extern "C" __global__ void IN_CLUSTERS __launch_bounds__(THREADS, AT_ONCE)
    bnengine_held_forward(const Vector* __restrict__ x, Vector* __restrict__ y, float* mean, float* rest, float* var,
                          const float* __restrict__ gamma, const float* __restrict__ beta, const Layout layout,
                          const Options options) {
  extern __shared__ uint4 memory[];
  Tile tile(layout);
  float* scratch = (float*)memory;
  Vector* held = behind_sums(memory, tile, 3);
  float inv_count = options.inv_count;
  // Shifted by the channel's first value: a small spread beside a large mean loses nothing.
  Vector before = tile.stop ? x[tile.at(0)] : Vector();
  float sum[KEPT] = {};
  int k = 0;
  auto ask = [&](int i) { return x[tile.at(i)]; };
  in_turn<AHEAD>(tile, ask, [&](int, const Vector& v) {
    held[k++ * THREADS] = v;
#pragma unroll
    for (int n = 0; n < VECTOR; ++n) sum[ROWS ? n : 0] += (float)v.value[n] - (float)before.value[ROWS ? n : 0];
  });
  all_sum(sum, tile, scratch);
  Moment m[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) two_sum((float)before.value[n], sum[n] * inv_count, m[n].mean, m[n].rest);
  // The second pass is about that mean; its own sum of distances corrects what an outlying first value cost.
  float square[2 * KEPT] = {};
  k = 0;
#pragma unroll 4
  for (int i = tile.first; i < tile.stop; i += tile.step, ++k) {
    Vector v = held[k * THREADS];
#pragma unroll
    for (int n = 0; n < VECTOR; ++n) {
      int c = ROWS ? n : 0;
      float distance = ((float)v.value[n] - m[c].mean) - m[c].rest;
      square[c] += distance;
      square[KEPT + c] += distance * (distance * inv_count);  // divided first: 1e18 squared would overflow
    }
  }
  all_sum(square, tile, scratch);
  if (CLUSTER > 1) cluster_arrive();  // this block has read all that it reads of the others' memory
  Channel channel[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    float off = square[n] * inv_count;
    two_sum(m[n].mean, m[n].rest + off, m[n].mean, m[n].rest);
    float spread = square[KEPT + n] - off * off;
    m[n].var = spread < 0 ? 0 : spread;
    if (tile.stop) channel[n] = Channel(m[n], gamma, beta, tile.channel(n), options);
    if (!tile.writes() || tile.part) continue;
    mean[tile.channel(n)] = m[n].mean;
    rest[tile.channel(n)] = m[n].rest;
    var[tile.channel(n)] = m[n].var;
  }
  k = 0;
#pragma unroll 4
  for (int i = tile.first; i < tile.stop; i += tile.step, ++k) {
    Vector v = held[k * THREADS];
#pragma unroll
    for (int n = 0; n < VECTOR; ++n)
      v.value[n] = T(channel[ROWS ? n : 0].activated((float)v.value[n], options.relu));
    y[tile.at(i)] = v;
  }
  if (CLUSTER > 1) cluster_wait();  // another block may still be reading this one's sums
}
