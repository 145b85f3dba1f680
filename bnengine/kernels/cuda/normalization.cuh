// Batch normalisation on the device: which values a thread visits, and what it does with them.
// M is the statistics type (float, or double for double), T and D are the types in memory.

static constexpr int IN_FLIGHT = 8;  // values that a thread loads before it uses the first of them

// The values that one thread visits, all of one channel. Memory is read as (outer, channels, inner); thread
// (row, channel, column) visits outer indices row, row + rows, ... and inner indices column, column + columns, ...
// Neighbouring threads read neighbouring addresses, and no value costs a division.
struct Walk {
  ptrdiff_t outer, inner, rows, columns, jump;
  ptrdiff_t channel, column;
  ptrdiff_t n, j, plane;

  __device__ Walk(ptrdiff_t thread, ptrdiff_t outer, ptrdiff_t channels, ptrdiff_t inner, ptrdiff_t rows,
                  ptrdiff_t columns)
      : outer(outer), inner(inner), rows(rows), columns(columns), jump(rows * channels * inner) {
    unsigned int t = (unsigned int)thread;  // below 2^31, and division in 32 bits is far cheaper
    column = t % (unsigned int)columns;
    t /= (unsigned int)columns;
    channel = t % (unsigned int)channels;
    n = t / (unsigned int)channels;
    j = column;
    plane = (n * channels + channel) * inner;
  }

  // Up to IN_FLIGHT positions of the values that come next; answers how many.
  __device__ int take(ptrdiff_t (&at)[IN_FLIGHT]) {
    int taken = 0;
#pragma unroll
    for (int k = 0; k < IN_FLIGHT; ++k) {
      if (n < outer && j < inner) {
        at[k] = plane + j;
        ++taken;
        step();
      }
    }
    return taken;
  }

  __device__ void step() {
    j += columns;
    if (j >= inner) {
      j = column;
      n += rows;
      plane += jump;
    }
  }
};

template <typename M, typename X>
__device__ void load(M (&value)[IN_FLIGHT], const X& x, const ptrdiff_t (&at)[IN_FLIGHT], int taken) {
#pragma unroll
  for (int k = 0; k < IN_FLIGHT; ++k) {
    if (k < taken) value[k] = (M)x[at[k]];
  }
}

// ---- a channel with its statistics and parameters, folded once for each thread

template <typename M>
struct Channel {
  M mean, remainder, inv_std, scale, shift;

  __device__ Channel(M mean, M remainder, M var, M gamma, M beta, M eps) : mean(mean), remainder(remainder) {
    inv_std = 1 / sqrt(var + eps);
    scale = gamma * inv_std;
    shift = fma(-remainder, scale, beta);
  }

  // x - mean first: it is exact where both are close, and mean + remainder would round the remainder away.
  // The explicit fma gives forward pass and mask the same bits.
  __device__ M affine(M x) const { return fma(x - mean, scale, shift); }
  __device__ M xhat(M x) const { return ((x - mean) - remainder) * inv_std; }

  // dy, or zero where the fused ReLU was off. <= and not >: NaN stays NaN.
  __device__ M masked(M dy, M x, bool relu) const { return relu && affine(x) <= 0 ? M(0) : dy; }
};

template <typename T, typename M, typename X, typename Y>
__device__ void normalize(Walk walk, const Channel<M>& channel, const X& x, Y& y, bool relu) {
  ptrdiff_t at[IN_FLIGHT];
  M value[IN_FLIGHT];
  while (int taken = walk.take(at)) {
    load(value, x, at, taken);
#pragma unroll
    for (int k = 0; k < IN_FLIGHT; ++k) {
      if (k >= taken) continue;
      M result = channel.affine(value[k]);
      y[at[k]] = T(relu && result <= 0 ? M(0) : result);
    }
  }
}

// dx = scale * (dy - sum(dy) / n - xhat * sum(dy * xhat) / n), given the two means over the channel.
template <typename T, typename M, typename DY, typename X, typename DX>
__device__ void input_gradient(Walk walk, const Channel<M>& channel, const DY& dy, const X& x, DX& dx, M mean_dy,
                               M mean_dy_xhat, bool relu) {
  ptrdiff_t at[IN_FLIGHT];
  M value[IN_FLIGHT], gradient[IN_FLIGHT];
  while (int taken = walk.take(at)) {
    load(value, x, at, taken);
    load(gradient, dy, at, taken);
#pragma unroll
    for (int k = 0; k < IN_FLIGHT; ++k) {
      if (k >= taken) continue;
      M centered = channel.masked(gradient[k], value[k], relu) - mean_dy;
      dx[at[k]] = T(channel.scale * (centered - channel.xhat(value[k]) * mean_dy_xhat));
    }
  }
}

// dx = scale * dy, for statistics that do not depend on x.
template <typename T, typename M, typename DY, typename X, typename DX>
__device__ void given_gradient(Walk walk, const Channel<M>& channel, const DY& dy, const X& x, DX& dx, bool relu) {
  ptrdiff_t at[IN_FLIGHT];
  M value[IN_FLIGHT], gradient[IN_FLIGHT];
  while (int taken = walk.take(at)) {
    load(value, x, at, taken);
    load(gradient, dy, at, taken);
#pragma unroll
    for (int k = 0; k < IN_FLIGHT; ++k) {
      if (k < taken) dx[at[k]] = T(channel.scale * channel.masked(gradient[k], value[k], relu));
    }
  }
}

// ---- statistics, first stage: what one thread knows of its share of a channel

template <typename M>
struct Share {
  M count = 0;
  M base = 0;    // its first value: x - base is exact where the spread is small beside the mean
  M offset = 0;  // mean - base
  M var = 0;     // kept divided: squares of 1e18 would overflow a float32 sum

  template <typename X>
  __device__ Share(Walk walk, const X& x) {
    ptrdiff_t at[IN_FLIGHT];
    M value[IN_FLIGHT];
    while (int taken = walk.take(at)) {
      load(value, x, at, taken);
      if (count == 0) base = value[0];
      add(value, taken);
    }
  }

  // Two exact passes over the values at hand, then a merge (Chan, Golub and LeVeque 1979): one shift for all
  // values would lose the variance where that shift is an outlier.
  __device__ void add(M (&value)[IN_FLIGHT], int taken) {
    M mean = 0, square = 0;
#pragma unroll
    for (int k = 0; k < IN_FLIGHT; ++k) {
      if (k >= taken) continue;
      value[k] -= base;
      mean += value[k];
    }
    mean /= taken;
#pragma unroll
    for (int k = 0; k < IN_FLIGHT; ++k) {
      if (k < taken) square += (value[k] - mean) * (value[k] - mean);
    }
    count += taken;
    M weight = taken / count, delta = mean - offset;
    var += weight * (square / taken - var + delta * delta * (1 - weight));
    offset += weight * delta;
  }
};

// ---- statistics, second stage: shares merged in double, of which there is one for dozens of values

struct Pool {
  double count = 0, mean = 0, remainder = 0, var = 0;

  __device__ Pool() {}
  __device__ Pool(double count, double base, double offset, double var) : count(count), var(var) {
    set_mean(base, offset);
  }

  // mean + remainder = a + b without rounding (Knuth's two-sum).
  __device__ void set_mean(double a, double b) {
    mean = a + b;
    double rest = mean - a;
    remainder = (a - (mean - rest)) + (b - rest);
  }
};

__device__ Pool pooled(const Pool& a, const Pool& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  Pool both;
  both.count = a.count + b.count;
  double weight = b.count / both.count;
  double delta = (b.mean - a.mean) + (b.remainder - a.remainder);
  both.var = a.var + weight * (b.var - a.var + delta * delta * (1 - weight));
  both.set_mean(a.mean, a.remainder + delta * weight);
  return both;
}

// ---- gradient sums, in the same two stages

template <typename M>
struct GradientShare {
  M dy = 0, dy_xhat = 0;

  template <typename DY, typename X>
  __device__ GradientShare(Walk walk, const Channel<M>& channel, const DY& dy, const X& x, bool relu) {
    ptrdiff_t at[IN_FLIGHT];
    M value[IN_FLIGHT], gradient[IN_FLIGHT];
    while (int taken = walk.take(at)) {
      load(value, x, at, taken);
      load(gradient, dy, at, taken);
      add(channel, value, gradient, taken, relu);
    }
  }

  // The values at hand are summed first: rounding then grows with their blocks, not with their number.
  __device__ void add(const Channel<M>& channel, const M (&value)[IN_FLIGHT], const M (&gradient)[IN_FLIGHT],
                      int taken, bool relu) {
    M block_dy = 0, block_dy_xhat = 0;
#pragma unroll
    for (int k = 0; k < IN_FLIGHT; ++k) {
      if (k >= taken) continue;
      M masked = channel.masked(gradient[k], value[k], relu);
      block_dy += masked;
      block_dy_xhat += masked * channel.xhat(value[k]);
    }
    dy += block_dy;
    dy_xhat += block_dy_xhat;
  }
};

struct GradientPool {
  double dy = 0, dy_xhat = 0;

  __device__ GradientPool() {}
  __device__ GradientPool(double dy, double dy_xhat) : dy(dy), dy_xhat(dy_xhat) {}
};

__device__ GradientPool pooled(const GradientPool& a, const GradientPool& b) {
  return GradientPool(a.dy + b.dy, a.dy_xhat + b.dy_xhat);
}
