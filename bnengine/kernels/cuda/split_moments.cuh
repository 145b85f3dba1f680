// Statistics of tiles that several blocks share.

// A share of a channel: its part of the values, and their mean (as two numbers) and variance.
struct alignas(16) Share {
  float weight = 0, mean = 0, rest = 0, var = 0;

  // Two passes over the values at hand about the mean so far, then a merge (Chan, Golub and LeVeque 1979). These
  // values are `part` of all that the thread has had.
  template <int N>
  __device__ void add(float (&value)[N], int taken, float part) {
    float block = 0, square = 0;
    if (part == 1) mean = value[0];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (n < taken) block += value[n] -= mean;
    }
    block /= taken;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (n < taken) square += (value[n] - block) * (value[n] - block);
    }
    float delta = block - rest;
    var += part * (square / taken - var + delta * delta * (1 - part));
    two_sum(mean, rest + part * delta, mean, rest);
  }
};

// One share of each channel out of all threads' shares, of which `each(k, see)` shows a thread's own of its k-th
// channel. Two passes: the second corrects what an outlying base cost the first.
template <typename Each>
__device__ void pooled(Share (&result)[KEPT], const float (&base)[KEPT], const Tile& tile, float*& scratch,
                       const Each& each) {
  float sum[KEPT + 1] = {}, square[2 * KEPT] = {};
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    sum[KEPT] = 0;
    each(n, [&](const Share& s) {
      sum[n] += s.weight * ((s.mean - base[n]) + s.rest);
      sum[KEPT] += s.weight;
    });
  }
  all_sum(sum, tile, scratch);
  float all = 1 / sum[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    Share& r = result[n];
    r.weight = sum[KEPT];
    two_sum(base[n], sum[n] * all, r.mean, r.rest);
    each(n, [&](const Share& s) {
      float distance = (s.mean - r.mean) + (s.rest - r.rest);
      square[n] += s.weight * all * distance;
      square[KEPT + n] += s.weight * all * (s.var + distance * distance);
    });
  }
  all_sum(square, tile, scratch);
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    float off = square[n], spread = square[KEPT + n] - off * off;
    two_sum(result[n].mean, result[n].rest + off, result[n].mean, result[n].rest);
    result[n].var = spread < 0 ? 0 : spread;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MANY ? 2 : 3)
    bnengine_split_moments(const Vector* __restrict__ x, Share* shares, unsigned int* tickets, float* mean, float* rest,
                           float* var, const Layout layout, const Options options) {
  extern __shared__ uint4 memory[];
  Tile tile(layout);
  float* scratch = (float*)memory;
  Share mine[KEPT];
  int count = 0;
  for (int i = tile.first; i < tile.stop; i += BATCH * tile.step) {
    Vector v[BATCH];
    int taken = min(BATCH, (tile.stop - 1 - i) / tile.step + 1);
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      v[b] = x[tile.at(b < taken ? i + b * tile.step : i)];  // no branch between the loads
    }
    count += taken;
    constexpr int EACH = VECTOR / KEPT;  // values of a channel in a vector
#pragma unroll
    for (int n = 0; n < KEPT; ++n) {
      float value[BATCH * EACH];
#pragma unroll
      for (int b = 0; b < BATCH * EACH; ++b) value[b] = (float)v[b / EACH].value[n + b % EACH];
      mine[n].add(value, taken * EACH, (float)taken / count);
      mine[n].weight = count * EACH * options.inv_count;
    }
  }
  Vector before = tile.stop ? x[tile.at(tile.start())] : Vector();
  float base[KEPT];
  Share share[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; ++n) base[n] = (float)before.value[n];
  pooled(share, base, tile, scratch, [&](int n, auto see) { see(mine[n]); });
  if (layout.parts > 1) {
#pragma unroll
    for (int n = 0; n < KEPT; ++n) {
      if (tile.writes()) shares[(ptrdiff_t)tile.part * layout.channels + tile.channel(n)] = share[n];
    }
    if (!last_of(tile, tickets)) return;
    auto share_of = [&](int s, int n) {
      float4 words = __ldcg((const float4*)shares + (ptrdiff_t)s * layout.channels + tile.channel(n));
      Share found;
      found.weight = words.x, found.mean = words.y, found.rest = words.z, found.var = words.w;
      return found;
    };
#pragma unroll
    for (int n = 0; n < KEPT; ++n) base[n] = tile.stop ? share_of(0, n).mean : 0;
    pooled(share, base, tile, scratch, [&](int n, auto see) {
      if (!tile.stop) return;
      for (int s = threadIdx.x / layout.lanes; s < layout.parts; s += THREADS / layout.lanes) see(share_of(s, n));
    });
  }
#pragma unroll
  for (int n = 0; n < KEPT; ++n) {
    if (!tile.writes()) continue;
    mean[tile.channel(n)] = share[n].mean;
    rest[tile.channel(n)] = share[n].rest;
    var[tile.channel(n)] = share[n].var;
  }
}
