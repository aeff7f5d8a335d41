// Where the keys and values of a head lie in its block: see KeyValueBlocks. Included once for every level.

// Numbers that are summed over and stand side by side: two of bfloat16, which some machines multiply in pairs.
template <typename Element>
constexpr int64_t kBeside = std::is_same_v<Element, uint16_t> ? 2 : 1;

// Dimensions of a key, with a zero where the last of an odd number would stand alone.
template <typename Element>
INLINE int64_t key_dims(int64_t dim) {
  return (dim + kBeside<Element> - 1) / kBeside<Element> * kBeside<Element>;
}

// Keys and values of a strip, and their scales if they are int8: the first `there` of its keys exist.
template <typename Element>
struct Strip {
  const Element *keys, *values;
  int64_t key_stride;  // from one dimension, or pair of them, to the next
  int64_t begin, there;
  const float *key_scales, *value_scales;  // or null
};

// Of pairs of bfloat16 the first ones or the second ones.
INLINE F either(U both, bool second) { return (F)(second ? both & 0xffff0000u : both << 16); }

// Dimension d of W keys from `lane` on.
template <typename Element>
INLINE F keys_at(const Strip<Element>& strip, int64_t d, int64_t lane) {
  return load(strip.keys + d * strip.key_stride + lane);
}
INLINE F keys_at(const Strip<uint16_t>& strip, int64_t d, int64_t lane) {
  return either(load_as<U>(strip.keys + d / 2 * strip.key_stride + 2 * lane), d % 2);
}

// W dimensions of the value of a key from d on.
template <typename Element>
INLINE F values_at(const Strip<Element>& strip, int64_t key, int64_t d, int64_t padded) {
  return load(strip.values + key * padded + d);
}
INLINE F values_at(const Strip<uint16_t>& strip, int64_t key, int64_t d, int64_t padded) {
  return either(load_as<U>(strip.values + 2 * (key / 2 * padded + d)), key % 2);
}
