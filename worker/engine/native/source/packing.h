// From the rows of a linear layer's weight to the panels that products read, in one pass: each number is read once,
// from wherever it lies (a mapped file for one), and written once, to where it stays.
//
// A panel of words of 32 bits (float32, or two neighbouring bfloat16) is its rows turned; of int8 the same with words of
// 16 bits, quantised on the way. `matrix.h` describes the layouts.
#pragma once
#include "matrix.h"

namespace plexus {

struct Part {  // rows [count, depth] of a weight that lies in several places
  const void* rows;
  int64_t count;
};

constexpr int64_t kStretch = 256;  // numbers of each row that are converted at a time, and then turned

#if defined(__AVX2__)
inline __m128i load_words(const void* from) { return _mm_loadu_si128((const __m128i*)from); }

// Eight rows of eight words of 16 bits, turned.
inline void turn_square(const uint16_t* const* rows, int64_t at, uint16_t* to) {
  __m128i a[8], b[8];
  for (int i = 0; i < 8; i++) a[i] = load_words(rows[i] + at);
  for (int i = 0; i < 4; i++) {
    b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++)
    for (int half = 0; half < 2; half++) {
      a[4 * i + 2 * half] = _mm_unpacklo_epi32(b[4 * i + half], b[4 * i + 2 + half]);
      a[4 * i + 2 * half + 1] = _mm_unpackhi_epi32(b[4 * i + half], b[4 * i + 2 + half]);
    }
  for (int i = 0; i < 4; i++) {
    _mm_storeu_si128((__m128i*)(to + 2 * i * kPanel), _mm_unpacklo_epi64(a[i], a[4 + i]));
    _mm_storeu_si128((__m128i*)(to + (2 * i + 1) * kPanel), _mm_unpackhi_epi64(a[i], a[4 + i]));
  }
}

// Eight rows of eight words of 32 bits, turned.
inline void turn_square(const uint32_t* const* rows, int64_t at, uint32_t* to) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; i++) {  // words 0 to 3 of rows i and i + 4 in the halves of one vector, 4 to 7 in another
    const uint32_t *low = rows[i] + at, *high = rows[i + 4] + at;
    a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load_words(low)), load_words(high), 1);
    a[i + 4] = _mm256_inserti128_si256(_mm256_castsi128_si256(load_words(low + 4)), load_words(high + 4), 1);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    b[i + 2] = _mm256_unpacklo_epi32(a[i + 2], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi32(a[i + 2], a[i + 3]);
  }
  for (int i = 0; i < 8; i += 4) {
    _mm256_storeu_si256((__m256i*)(to + i * kPanel), _mm256_unpacklo_epi64(b[i], b[i + 2]));
    _mm256_storeu_si256((__m256i*)(to + (i + 1) * kPanel), _mm256_unpackhi_epi64(b[i], b[i + 2]));
    _mm256_storeu_si256((__m256i*)(to + (i + 2) * kPanel), _mm256_unpacklo_epi64(b[i + 1], b[i + 3]));
    _mm256_storeu_si256((__m256i*)(to + (i + 3) * kPanel), _mm256_unpackhi_epi64(b[i + 1], b[i + 3]));
  }
}
#endif

// [kPanel rows][words] to [words][kPanel]; rows need not be aligned.
template <class Word>
void turn(const Word* const* rows, int64_t words, Word* to) {
  int64_t k = 0;
#if defined(__AVX2__)
  for (; k + 8 <= words; k += 8)
    for (int lane = 0; lane < kPanel; lane += 8) turn_square(rows + lane, k, to + k * kPanel + lane);
#endif
  for (; k < words; k++)
    for (int lane = 0; lane < kPanel; lane++) to[k * kPanel + lane] = load<Word>(rows[lane] + k);
}

// The largest size of any of these numbers; what is not a number counts for nothing.
template <class Source>
float largest(const Source* from, int64_t count) {
  Floats found = splat(0.0f);
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    Floats x = load_floats(from + k);
    found = max(x, found);
    found = max(-x, found);
  }
  float top = 0;
  for (int lane = 0; lane < kLanes; lane++) top = std::max(top, found[lane]);
  for (; k < count; k++) top = std::max(top, std::fabs(to_float(load<Source>(from + k))));
  return top;
}

// To the nearest whole number, to even between two. Not by adding a large number: the compiler would join that with the
// product before it, which then is rounded once and not twice.
inline Ints to_nearest(Floats x) {
#if defined(PLEXUS_AVX512)
  return (Ints)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtps_epi32((__m256)x);
#else
  Ints result;
  for (int lane = 0; lane < kLanes; lane++) result[lane] = int32_t(std::lrint(x[lane]));
  return result;
#endif
}

// Times `inverse`, in whole numbers.
template <class Source>
void quantise(const Source* from, int64_t count, float inverse, int8_t* to) {
  typedef int8_t Small __attribute__((vector_size(kLanes)));
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes)
    store(to + k, __builtin_convertvector(to_nearest(load_floats(from + k) * inverse), Small));
  for (; k < count; k++) to[k] = int8_t(std::lrint(to_float(load<Source>(from + k)) * inverse));
}

inline void convert(const float* from, int64_t count, bfloat* to) {
  for (int64_t k = 0; k < count; k++) to[k] = narrow(load<float>(from + k));
}
inline void convert(const bfloat* from, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k++) to[k] = widen(load<bfloat>(from + k));
}
inline void convert(const float* from, int64_t count, float* to) { std::memcpy(to, from, count * sizeof *to); }
inline void convert(const bfloat* from, int64_t count, bfloat* to) { std::memcpy(to, from, count * sizeof *to); }

// Numbers that stay what they are, or change their type.
template <class Target, class Source>
void pack_plain(const Matrix& m, const Source* const* rows, uint32_t* to) {
  constexpr int64_t kEach = 4 / sizeof(Target);  // numbers a word
  const uint32_t* words[kPanel];
  if constexpr (sizeof(Target) == sizeof(Source)) {
    for (int lane = 0; lane < kPanel; lane++) words[lane] = (const uint32_t*)rows[lane];
    turn(words, m.depth / kEach, to);
    return;
  }
  Target held[kPanel][kStretch];
  for (int64_t from = 0; from < m.depth; from += kStretch) {
    const int64_t count = std::min(kStretch, m.depth - from);
    for (int lane = 0; lane < kPanel; lane++) {
      convert(rows[lane] + from, count, held[lane]);
      words[lane] = (const uint32_t*)held[lane];
    }
    turn(words, count / kEach, to + from / kEach * kPanel);
  }
}

template <class Source>
void pack_int8(const Matrix& m, const Source* const* rows, uint16_t* to, float* scales) {
  int8_t held[kPanel][kStretch];
  const uint16_t* pairs[kPanel];
  float inverses[kPanel];
  for (int lane = 0; lane < kPanel; lane++) {
    scales[lane] = largest(rows[lane], m.depth) / 127;
    inverses[lane] = scales[lane] == 0 ? 0 : 1 / scales[lane];
    pairs[lane] = (const uint16_t*)held[lane];
  }
  for (int64_t from = 0; from < m.depth; from += kStretch) {
    const int64_t count = std::min(kStretch, m.depth - from);
    for (int lane = 0; lane < kPanel; lane++) quantise(rows[lane] + from, count, inverses[lane], held[lane]);
    turn(pairs, count / 2, to + from / 2 * kPanel);
  }
}

// The number farthest from zero, the first of several, with its sign.
template <class Source>
float extreme_of(const Source* from) {
  Floats high = splat(0.0f), low = splat(0.0f);
  for (int k = 0; k < kGroup; k += kLanes) {
    Floats x = load_floats(from + k);
    high = max(x, high);
    low = max(-x, low);
  }
  float most = 0, least = 0;
  for (int lane = 0; lane < kLanes; lane++) {
    most = std::max(most, high[lane]);
    least = std::max(least, low[lane]);
  }
  if (most == 0 || most != least) return most >= least ? most : -least;
  for (int k = 0; k < kGroup; k++)
    if (float x = to_float(load<Source>(from + k)); std::fabs(x) == most) return x;
  return 0;
}

template <class Source>
void pack_int4_group(const Source* from, int lane, char* group) {
  typedef int8_t Small __attribute__((vector_size(kLanes)));
  bfloat scale = narrow(extreme_of(from) / -8);  // which becomes -8, the one value without a counterpart
  float inverse = widen(scale) == 0 ? 0 : 1 / widen(scale);
  std::memcpy(group + 2 * lane, &scale, sizeof scale);
  int8_t codes[kGroup];
  for (int k = 0; k < kGroup; k += kLanes) {
    Ints code = to_nearest(load_floats(from + k) * inverse) + 8;
    code = code > 15 ? splat(15) : code;
    code = code < 0 ? splat(0) : code;
    store(codes + k, __builtin_convertvector(code, Small));
  }
  char* lines = group + kNarrowPanel * 2;
  for (int line = 0; line < kGroup / 8; line++) {
    uint32_t word = load<uint32_t>(codes + 8 * line) | load<uint32_t>(codes + 8 * line + 4) << 4;
    std::memcpy(lines + (line * kNarrowPanel + lane) * 4, &word, sizeof word);
  }
}

// One panel, from the rows of its columns; `scales` are its own.
template <class Source>
void pack_panel(const Matrix& m, const Source* const* rows, char* to, float* scales) {
  switch (m.kind) {
    case kFloat32: return pack_plain<float>(m, rows, (uint32_t*)to);
    case kBfloat16: return pack_plain<bfloat>(m, rows, (uint32_t*)to);
    case kInt8: return pack_int8(m, rows, (uint16_t*)to, scales);
    default:
      for (int64_t group = 0; group < m.depth / kGroup; group++)
        for (int lane = 0; lane < kNarrowPanel; lane++)
          pack_int4_group(rows[lane] + group * kGroup, lane, to + group * kGroupBytes);
  }
}

// Packs the rows of all parts, one part below the other. Columns beyond the last are zeros.
template <class Source>
void pack(const Matrix& m, const Part* parts, int threads) {
  const std::vector<Source> none(m.depth);
  const int width = m.panel();
  run(threads, [&](Team& team) {
    team.share(m.panels(), 1, [&](int64_t panel, int64_t) {
      const Source* rows[kPanel];
      for (int lane = 0; lane < width; lane++) {
        int64_t row = panel * width + lane;
        const Part* part = parts;
        if (row >= m.columns) {
          rows[lane] = none.data();
          continue;
        }
        for (; row >= part->count; part++) row -= part->count;
        rows[lane] = (const Source*)part->rows + row * m.depth;
      }
      pack_panel(m, rows, (char*)m.data + panel * m.panel_bytes(), (float*)m.scales + panel * width);
    });
  });
}

}  // namespace plexus
