// The type that arithmetic is done in: float, and double for double.

template <typename T>
struct wide {
  typedef float type;
};
template <>
struct wide<double> {
  typedef double type;
};
