// The network's other operations on the device.

// 1 / (1 + exp(-x)), without overflow and to full relative precision on both sides.
template <typename M>
__device__ M logistic(M x) {
  M small = exp(-fabs(x));
  return (x < 0 ? small : M(1)) / (1 + small);
}
