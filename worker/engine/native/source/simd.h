// Vectors of the machine's width, by the compiler's own vector extensions: the same text serves AVX-512, AVX2 and NEON.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace plexus {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define PLEXUS_AVX512 1
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef int16_t Shorts __attribute__((vector_size(kLanes * 4)));   // two a lane
typedef uint8_t Bytes __attribute__((vector_size(kLanes * 4)));    // four a lane
typedef int8_t SmallBytes __attribute__((vector_size(kLanes * 2)));  // two a lane once widened
typedef uint16_t bfloat;

template <class V, class T>
inline V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class V, class T>
inline void store(T* to, V value) {
  std::memcpy(to, &value, sizeof value);
}

inline Floats splat(float x) { return x - Floats{}; }  // and not plus: that would turn -0 into 0, which costs an addition
inline Ints splat(int32_t x) { return Ints{} + x; }
inline Words splat(uint32_t x) { return Words{} + x; }
inline Floats as_floats(Words x) { return (Floats)x; }

inline float widen(bfloat x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline bfloat narrow(float x) {  // to nearest even; not a number stays one
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return bfloat((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Compilers take detours to widen vectors, hence the instructions by name where they are known.
inline Words widen_words(const uint16_t* from) {
#if defined(PLEXUS_AVX512)
  return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  return __builtin_convertvector(load<Halves>(from), Words);
#endif
}

inline Shorts widen_bytes(const void* from) {
#if defined(PLEXUS_AVX512)
  return (Shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
#else
  return __builtin_convertvector(load<SmallBytes>((const char*)from), Shorts);
#endif
}

inline Floats load_floats(const float* from) { return load<Floats>(from); }
inline Floats load_floats(const bfloat* from) { return as_floats(widen_words(from) << 16); }
inline void store_floats(float* to, Floats value) { store(to, value); }
inline void store_floats(bfloat* to, Floats value) {
  Words bits = (Words)value;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words is_number = (Words)(value == value);
  rounded = (rounded & is_number) | (splat(uint32_t(0x7fc0)) & ~is_number);
  store(to, __builtin_convertvector(rounded, Halves));
}
inline float to_float(float x) { return x; }
inline float to_float(bfloat x) { return widen(x); }
inline void from_float(float* to, float x) { *to = x; }
inline void from_float(bfloat* to, float x) { *to = narrow(x); }

inline float sum(Floats x) {
#if defined(__AVX2__)
#if defined(PLEXUS_AVX512)
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
#else
  __m256 eight = (__m256)x;
#endif
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
#else
  float total = 0;
  for (int lane = 0; lane < kLanes; lane++) total += x[lane];
  return total;
#endif
}

inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }

// e to the x, to about two units in the last place; below -87 it is a denormal's neighbourhood and taken as e^-87.
inline Floats exp(Floats x) {
  x = min(max(x, splat(-87.0f)), splat(88.0f));
  Floats shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to the nearest whole number
  Floats whole = shifted - 12582912.0f;
  Floats rest = x - whole * 0.693359375f;
  rest = rest - whole * -2.12194440e-4f;
  Floats power = splat(1.0f / 5040);
  power = power * rest + 1.0f / 720;
  power = power * rest + 1.0f / 120;
  power = power * rest + 1.0f / 24;
  power = power * rest + 1.0f / 6;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  Ints exponent = (Ints)shifted - 0x4b400000;
  return power * as_floats((Words)((exponent + 127) << 23));
}

inline Floats tanh(Floats x) {
  Floats twice = exp(x * 2.0f);
  return 1.0f - 2.0f / (twice + 1.0f);
}

// Products of neighbouring 16-bit numbers, added in pairs.
inline Ints multiply_pairs(Shorts a, Shorts b) {
#if defined(PLEXUS_AVX512)
  return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  Ints result;
  for (int lane = 0; lane < kLanes; lane++)
    result[lane] = int32_t(a[2 * lane]) * b[2 * lane] + int32_t(a[2 * lane + 1]) * b[2 * lane + 1];
  return result;
#endif
}

// Products of neighbouring unsigned and signed bytes, added in pairs; the caller keeps them within 16 bits.
inline Shorts multiply_byte_pairs(Bytes a, Bytes b) {
#if defined(PLEXUS_AVX512)
  return (Shorts)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Shorts)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#else
  Shorts result;
  for (int pair = 0; pair < 2 * kLanes; pair++)
    result[pair] = int16_t(int(a[2 * pair]) * int8_t(b[2 * pair]) + int(a[2 * pair + 1]) * int8_t(b[2 * pair + 1]));
  return result;
#endif
}

}  // namespace plexus
