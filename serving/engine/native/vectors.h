// Sixteen numbers at a time, by the vector types of GCC and Clang, which compile for any CPU; intrinsics only where they
// make a difference that was measured.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

using bf16 = uint16_t;
typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));  // also sixteen pairs of bf16, the first in the lower half
typedef uint16_t halves __attribute__((vector_size(32)));

constexpr ints kLanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

template <class Vector>
inline Vector load(const void* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class Vector>
inline void store(void* p, Vector v) {
  std::memcpy(p, &v, sizeof v);
}

inline floats all(float value) { return floats{} + value; }

inline floats from_bf16(const bf16* p) { return (floats)(__builtin_convertvector(load<halves>(p), words) << 16); }

// To the nearest, of two equally near ones to the even one.
inline void to_bf16(bf16* p, floats v) {
#ifdef __AVX512BF16__
  store(p, (halves)_mm512_cvtneps_pbh((__m512)v));
#else
  const words bits = (words)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  store(p, __builtin_convertvector(v == v ? rounded : words{} + 0x7fc0, halves));
#endif
}

inline floats larger(floats a, floats b) { return a > b ? a : b; }

// The first n lanes of v, and `other` in the rest.
inline floats first(int n, floats v, float other) { return kLanes < n ? v : all(other); }

inline float sum(floats v) {
  float a[16];
  store(a, v);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; ++i) a[i] += a[i + n];
  return a[0];
}

inline float maximum(floats v) {
  float a[16], most = -INFINITY;
  store(a, v);
  for (const float x : a) most = x > most ? x : most;
  return most;
}

// sum + a · b over pairs of bf16: lane i gets a[2i]·b[2i] + a[2i+1]·b[2i+1].
inline floats add_pairs(floats sum, words a, words b) {
#ifdef __AVX512BF16__
  return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (floats)(a << 16) * (floats)(b << 16);
  return sum + (floats)(a & 0xffff0000) * (floats)(b & 0xffff0000);
#endif
}

// Lane i gets the sum of v[i].
inline floats sums(const floats v[16]) {
#ifdef __AVX512F__
  __m512 quad[4];  // 128-bit lane j of quad[i]: partial sums of v[4i … 4i+3]
  for (int i = 0; i < 4; ++i) {
    const auto* a = reinterpret_cast<const __m512*>(v) + 4 * i;
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    quad[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  }
  const auto halve = [](__m512 a, __m512 b) {  // adds the lanes 0, 1 and 2, 3 of each
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return (floats)halve(halve(quad[0], quad[1]), halve(quad[2], quad[3]));
#else
  float a[16];
  for (int i = 0; i < 16; ++i) a[i] = sum(v[i]);
  return load<floats>(a);
#endif
}

// e^x for x ≤ 0, relative error under 2e-7; 0 below −87, and not a number for what is none. x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial in r (minimax, as in
// Cephes' expf), and n added to the exponent.
inline floats exponential(floats x) {
  constexpr float kLowest = -87.0f, kRound = 12582912.0f;  // 1.5·2²³: adding it rounds to a whole number
  const floats y = larger(x, all(kLowest));
  const floats n = (y * 1.44269504f + kRound) - kRound;
  const floats r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  floats p = all(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + c;
  p = p * (r * r) + (r + 1.0f);
  const floats found = (floats)((ints)p + (__builtin_convertvector(n, ints) << 23));
  return x != x ? x : x < kLowest ? floats{} : found;
}

// x · sigmoid(x), by e^-|x|, which can't overflow.
inline floats silu(floats x) {
  const floats e = exponential(x < 0.0f ? x : -x);
  return x * (x < 0.0f ? e : all(1.0f)) / (1.0f + e);
}
