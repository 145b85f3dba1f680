// The network's other operations on the device.

// 1 / (1 + exp(-x)), without overflow and to full relative precision on both sides.
template <typename M>
__device__ M logistic(M x) {
  M small = exp(-fabs(x));
  return (x < 0 ? small : M(1)) / (1 + small);
}

// A row of logits so far: its largest, and the sum of exp(z - largest). A total of 0 is a row without logits.
template <typename M>
struct Exponentials {
  M top = 0, total = 0;

  __device__ Exponentials() {}
  __device__ explicit Exponentials(M z) : top(z), total(1) {}
};

template <typename M>
__device__ Exponentials<M> joined(const Exponentials<M>& a, const Exponentials<M>& b) {
  if (b.total == 0) return a;
  if (a.total == 0) return b;
  Exponentials<M> both(a.top < b.top ? b.top : a.top);
  both.total = a.total * exp(a.top - both.top) + b.total * exp(b.top - both.top);
  return both;
}
