// One register of this instruction set, and the few operations that the compiler does not find by itself: it takes bytes
// apart one by one where they are to become numbers of 32 bits.
//
// Included once for every level (see kernels.cpp), inside its namespace and with its instructions allowed. Everything
// else is written once, in the compiler's own vectors of W numbers.

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))

#if GROUNDUP_LEVEL >= 2
constexpr int W = 16;
#elif GROUNDUP_LEVEL == 1
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint8_t B __attribute__((vector_size(4 * W)));      // four bytes for each of the W numbers
typedef uint16_t H __attribute__((vector_size(2 * W)));     // halves or bfloat16
typedef int8_t S __attribute__((vector_size(W)));

INLINE F splat(float x) { return F{} + x; }
INLINE I splat(int32_t x) { return I{} + x; }

#if GROUNDUP_LEVEL >= 2

// Rows and panels of the register tile for many tokens, and panels for a single one: 12 sums and 12 totals of 32
// registers; a single token's tile has four independent chains of sums instead.
constexpr int kTileRows = 6, kTilePanels = 2, kSinglePanels = 4;
constexpr int kAttentionRows = 4;
constexpr int64_t kSpan = 8;  // strips of keys that attention looks at together
// What bytes are off by inside dot_bytes, to be taken back with the sum of the activations.
constexpr int32_t kByteZero = 128;

INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE F from_half(H x) { return (F)_mm512_cvtph_ps((__m256i)x); }
INLINE U widen(H x) { return (U)_mm512_cvtepu16_epi32((__m256i)x); }
INLINE I widen(S x) { return (I)_mm512_cvtepi8_epi32((__m128i)x); }
INLINE H narrow(U x) { return (H)_mm512_cvtepi32_epi16((__m512i)x); }
INLINE S narrow(I x) { return (S)_mm512_cvtepi32_epi8((__m512i)x); }
INLINE float reduce_max(F x) { return _mm512_reduce_max_ps((__m512)x); }
INLINE float reduce_add(F x) { return _mm512_reduce_add_ps((__m512)x); }
// The sums of four registers.
INLINE void add_up(const F (&x)[4], float (&sums)[4]) {
  const auto neighbours = [](F a, F b) __attribute__((always_inline)) {
    return _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
  };
  const __m512d ab = _mm512_castps_pd(neighbours(x[0], x[1])), cd = _mm512_castps_pd(neighbours(x[2], x[3]));
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                   _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
// Those of x where `kept` is -1, side by side; all W places at `to` may be written to. Returns how many.
INLINE int64_t pack(float* to, F x, I kept) {
  const __mmask16 mask = _mm512_movepi32_mask((__m512i)kept);
  const __m512 packed = _mm512_maskz_compress_ps(mask, (__m512)x);
  std::memcpy(to, &packed, sizeof packed);
  return __builtin_popcount(mask);
}
INLINE I dot_nibbles(I sums, B weights, I values) {
  return (I)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)values);
}
INLINE I dot_bytes(I sums, B weights, I values) { return dot_nibbles(sums, weights, values); }
#if GROUNDUP_LEVEL >= 3
// sums + the products of the lower and of the upper bfloat16 of each number
INLINE F dot_pairs(F sums, U a, U b) {
#if defined(__clang__)  // some break on their own type of these numbers
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
  return sums;
#else
  return (F)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#endif
}
// To the nearest, halves to even; what is below 2⁻¹²⁶ becomes 0.
INLINE H to_bfloat16(F x) {
#if defined(__clang__)
  H rounded;
  asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(x));
  return rounded;
#else
  return (H)_mm512_cvtneps_pbh((__m512)x);
#endif
}
#endif

#elif GROUNDUP_LEVEL == 1

constexpr int kTileRows = 3, kTilePanels = 1, kSinglePanels = 2;
constexpr int kAttentionRows = 2;
constexpr int64_t kSpan = 1;
constexpr int32_t kByteZero = 0;

INLINE F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE F from_half(H x) { return (F)_mm256_cvtph_ps((__m128i)x); }
INLINE U widen(H x) { return (U)_mm256_cvtepu16_epi32((__m128i)x); }
INLINE I widen(S x) { return (I)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)x)); }
INLINE H narrow(U x) {  // of numbers that fit, as below
  return (H)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
}
INLINE S narrow(I x) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  return (S)_mm_cvtsi128_si64(_mm_packs_epi16(words, words));
}
INLINE float reduce_max(F x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
INLINE float reduce_add(F x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
INLINE void add_up(const F (&x)[4], float (&sums)[4]) {
  const __m256 ab = _mm256_hadd_ps((__m256)x[0], (__m256)x[1]), cd = _mm256_hadd_ps((__m256)x[2], (__m256)x[3]);
  const __m256 all = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
INLINE I widen_pairs(__m256i pairs) { return (I)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
// Pairs are added in 16 bits: 2 · 15 · 127 fits.
INLINE I dot_nibbles(I sums, B weights, I values) {
  return sums + widen_pairs(_mm256_maddubs_epi16((__m256i)weights, (__m256i)values));
}
// 2 · 255 · 127 would not fit, 2 · 128 · 127 does: the weight's sign is moved to the activation.
INLINE I dot_bytes(I sums, B weights, I values) {
  const __m256i whole = (__m256i)(weights ^ 128);
  return sums + widen_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(whole), _mm256_sign_epi8((__m256i)values, whole)));
}

#else

constexpr int kTileRows = 2, kTilePanels = 1, kSinglePanels = 1;
constexpr int kAttentionRows = 2;
constexpr int64_t kSpan = 1;
constexpr int32_t kByteZero = 128;

INLINE F fma(F a, F b, F c) { return a * b + c; }
INLINE F from_half(H x) {
  F out;
  for (int i = 0; i < W; ++i) out[i] = half_to_float(x[i]);
  return out;
}
INLINE U widen(H x) { return __builtin_convertvector(x, U); }
INLINE I widen(S x) { return __builtin_convertvector(x, I); }
INLINE H narrow(U x) { return __builtin_convertvector(x, H); }
INLINE S narrow(I x) { return __builtin_convertvector(x, S); }
INLINE float reduce_max(F x) { return std::max(std::max(x[0], x[1]), std::max(x[2], x[3])); }
INLINE float reduce_add(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
INLINE void add_up(const F (&x)[4], float (&sums)[4]) {
  for (int i = 0; i < 4; ++i) sums[i] = reduce_add(x[i]);
}
INLINE I dot_nibbles(I sums, B weights, I values) {
  typedef int8_t Signed __attribute__((vector_size(4 * W)));
  typedef int16_t Wide __attribute__((vector_size(8 * W)));
  const Wide products = __builtin_convertvector(weights, Wide) * __builtin_convertvector((Signed)values, Wide);
  for (int i = 0; i < 4 * W; ++i) sums[i / 4] += products[i];
  return sums;
}
INLINE I dot_bytes(I sums, B weights, I values) { return dot_nibbles(sums, weights, values); }

#endif

#if GROUNDUP_LEVEL < 2
INLINE int64_t pack(float* to, F x, I kept) {
  int64_t count = 0;
  for (int i = 0; i < W; ++i) to[count] = x[i], count -= kept[i];
  return count;
}
#endif
