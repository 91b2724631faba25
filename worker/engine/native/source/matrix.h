// A linear layer's weights, packed into panels of columns, and the products of activation rows with them.
//
// A panel holds some output columns side by side, so that one load brings the same input position of each of them and
// an activation is spread over the lanes. Sums over the input run in the same order whatever the number of rows is:
// a row's result does not depend on what it is batched with.
//
//   float32   [panel][k][column]
//   bfloat16  [panel][k / 2][column][2]
//   int8      [panel][k / 2][column][2], a scale for each column; activations become 16-bit, a scale for each row
//   int4      [panel][k / 32]{scale of each column (bfloat16), 4 lines of nibbles}, panels half as wide; a scale for
//             each 32 inputs of a column; activations become 8-bit, a scale for each 32
#pragma once
#include <algorithm>
#include <vector>

#include "simd.h"
#include "team.h"

namespace plexus {

enum Kind : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kInt4 = 3 };

constexpr int kPanel = 2 * kLanes;
constexpr int kNarrowPanel = kLanes;
constexpr int kGroup = 32;
constexpr int kGroupBytes = kNarrowPanel * (2 + kGroup / 2);
constexpr int kMaxRows = kLanes == 16 ? 10 : 5;  // of a tile: what the registers hold
constexpr int kWideRows = kLanes == 16 ? 12 : 6;  // of a tile whose weights need no more work
constexpr int64_t kManyRowsFrom = 24;             // rows from which that pays; never for whole numbers
constexpr int64_t kWords = 256;                   // of a row and of a panel that are in the first caches meanwhile
constexpr int64_t kRowWords = kWords + 16;
constexpr int64_t kBlockRows = 96;

struct Matrix {
  const void* data;
  const float* scales;  // int8
  const float* bias;    // or null
  int64_t columns;      // outputs
  int64_t depth;        // inputs
  int32_t kind;

  int panel() const { return kind == kInt4 ? kNarrowPanel : kPanel; }
  int64_t panels() const { return (columns + panel() - 1) / panel(); }
  int64_t panel_bytes() const {
    switch (kind) {
      case kFloat32: return depth * kPanel * 4;
      case kBfloat16: return depth * kPanel * 2;
      case kInt8: return depth * kPanel;
      default: return depth / kGroup * kGroupBytes;
    }
  }
  const char* panel_data(int64_t index) const { return (const char*)data + index * panel_bytes(); }
};

// --- unpacking -------------------------------------------------------------------------------------------------

// One row of the weight as `packing.h` packed it: what an embedding that shares its weight with the head needs.
inline void unpack_row(const Matrix& m, int64_t column, float* to) {
  const char* from = m.panel_data(column / m.panel());
  const int lane = int(column % m.panel());
  switch (m.kind) {
    case kFloat32:
      for (int64_t k = 0; k < m.depth; k++) to[k] = ((const float*)from)[k * kPanel + lane];
      break;
    case kBfloat16:
      for (int64_t k = 0; k < m.depth; k++) to[k] = widen(((const bfloat*)from)[(k / 2) * 2 * kPanel + lane * 2 + k % 2]);
      break;
    case kInt8:
      for (int64_t k = 0; k < m.depth; k++)
        to[k] = ((const int8_t*)from)[(k / 2) * 2 * kPanel + lane * 2 + k % 2] * m.scales[column];
      break;
    default:
      for (int64_t k = 0; k < m.depth; k++) {
        const char* group = from + k / kGroup * kGroupBytes;
        const auto* lines = (const uint8_t*)group + kNarrowPanel * 2;
        uint8_t byte = lines[(k % kGroup / 8) * kNarrowPanel * 4 + lane * 4 + k % 4];
        int code = k % 8 < 4 ? byte & 15 : byte >> 4;
        to[k] = (code - 8) * widen(((const bfloat*)group)[lane]);
      }
  }
}

// --- activations -----------------------------------------------------------------------------------------------

// Activation rows in the form that a kind of weight wants; `values` is the caller's own float rows where that will do.
struct Rows {
  const float* values;
  std::vector<int32_t> pairs;    // int8: two 16-bit numbers a word
  std::vector<int8_t> bytes;     // int4
  std::vector<float> scales;     // int8: one a row; int4: one a group
  std::vector<int32_t> offsets;  // int4: eight times a group's sum, since its weights are stored eight too high
  int64_t depth;

  // Room for so many rows; `convert` then fills them one by one.
  void reserve(int32_t kind, const float* from, int64_t rows, int64_t inputs) {
    values = from;
    depth = inputs;
    if (kind == kInt8) {
      grow(pairs, rows * inputs / 2);
      grow(scales, rows);
    } else if (kind == kInt4) {
      grow(bytes, rows * inputs);
      grow(scales, rows * inputs / kGroup);
      grow(offsets, rows * inputs / kGroup);
    }
  }

  void convert(int32_t kind, int64_t row) {
    const float* from = values + row * depth;
    if (kind == kInt8) {
      // As wide as the sums allow: depth products of 8 by so many bits stay within 32.
      float top = std::min(16383.0f, float((1u << 31) - 1) / (127.0f * float(depth)) - 1);
      float scale = largest_of(from, depth) / top;
      float inverse = scale == 0 ? 0 : 1 / scale;
      auto* to = (int16_t*)(pairs.data() + row * depth / 2);
      for (int64_t k = 0; k < depth; k++) to[k] = int16_t(nearest(from[k] * inverse));
      scales[row] = scale;
    } else if (kind == kInt4) {
      for (int64_t group = 0; group < depth / kGroup; group++) {
        const float* part = from + group * kGroup;
        float scale = largest_of(part, kGroup) / 127;
        float inverse = scale == 0 ? 0 : 1 / scale;
        int8_t* to = bytes.data() + row * depth + group * kGroup;
        int32_t total = 0;
        for (int k = 0; k < kGroup; k++) {
          int32_t value = nearest(part[k] * inverse);
          to[k] = int8_t(value);
          total += value;
        }
        scales[row * (depth / kGroup) + group] = scale;
        offsets[row * (depth / kGroup) + group] = 8 * total;
      }
    }
  }

 private:
  template <class V>
  static void grow(V& held, int64_t size) {
    if (int64_t(held.size()) < size) held.resize(size);
  }
  static float largest_of(const float* from, int64_t count) {
    Floats found = splat(0.0f);
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      Floats x = load_floats(from + k);
      found = max(found, max(x, -x));
    }
    float top = 0;
    for (int lane = 0; lane < kLanes; lane++) top = std::max(top, found[lane]);
    for (; k < count; k++) top = std::max(top, std::fabs(from[k]));
    return top;
  }
  static int32_t nearest(float x) {
    float shifted = x + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return bits - 0x4b400000;
  }
};

// Weights are read once and in order, but the processor's own prefetching stops at every page.
constexpr int kAhead = 4096;
inline void fetch_ahead(const void* at) { __builtin_prefetch((const char*)at + kAhead); }

// --- tiles: M rows by P panels --------------------------------------------------------------------------------

// c[row][column] = (first ? 0 : c) + sum over k in [from, to)
template <int M, int P>
inline void tile_float32(const Matrix& w, int64_t panel, const float* x, int64_t ldx, int64_t from, int64_t to, float* c,
                         int64_t ldc) {
  Floats sums[M][P][2];
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++)
      for (int half = 0; half < 2; half++)
        sums[m][p][half] = from ? load_floats(c + m * ldc + p * kPanel + half * kLanes) : Floats{};
  const auto* lines = (const float*)w.panel_data(panel);
  const int64_t stride = w.panel_bytes() / 4;
  for (int64_t k = from; k < to; k++) {
    for (int p = 0; p < P; p++) {
      Floats low = load_floats(lines + p * stride + k * kPanel);
      Floats high = load_floats(lines + p * stride + k * kPanel + kLanes);
      fetch_ahead(lines + p * stride + k * kPanel);
      for (int m = 0; m < M; m++) {
        Floats value = splat(x[m * ldx + k]);
        sums[m][p][0] += value * low;
        sums[m][p][1] += value * high;
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++)
      for (int half = 0; half < 2; half++) store_floats(c + m * ldc + p * kPanel + half * kLanes, sums[m][p][half]);
}

template <int M, int P>
inline void tile_bfloat16(const Matrix& w, int64_t panel, const float* x, int64_t ldx, int64_t from, int64_t to, float* c,
                          int64_t ldc) {
  Floats sums[M][P][2];
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++)
      for (int half = 0; half < 2; half++)
        sums[m][p][half] = from ? load_floats(c + m * ldc + p * kPanel + half * kLanes) : Floats{};
  const auto* lines = (const uint32_t*)w.panel_data(panel);
  const int64_t stride = w.panel_bytes() / 4;
  for (int64_t k = from; k < to; k += 2) {
    for (int p = 0; p < P; p++) {
      const uint32_t* line = lines + p * stride + (k / 2) * kPanel;
      Words low = load<Words>(line), high = load<Words>(line + kLanes);
      fetch_ahead(line);
      Floats even_low = as_floats(low << 16), even_high = as_floats(high << 16);
      for (int m = 0; m < M; m++) {
        Floats value = splat(x[m * ldx + k]);
        sums[m][p][0] += value * even_low;
        sums[m][p][1] += value * even_high;
      }
      Floats odd_low = as_floats(low & 0xffff0000u), odd_high = as_floats(high & 0xffff0000u);
      for (int m = 0; m < M; m++) {
        Floats value = splat(x[m * ldx + k + 1]);
        sums[m][p][0] += value * odd_low;
        sums[m][p][1] += value * odd_high;
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++)
      for (int half = 0; half < 2; half++) store_floats(c + m * ldc + p * kPanel + half * kLanes, sums[m][p][half]);
}

template <int M, int P>
inline void tile_int8(const Matrix& w, int64_t panel, const Rows& x, int64_t row, float* c, int64_t ldc) {
  Ints sums[M][P][2] = {};
  const char* lines = w.panel_data(panel);
  const int64_t stride = w.panel_bytes(), words = x.depth / 2;
  const int32_t* pairs = x.pairs.data() + row * words;
  for (int64_t k = 0; k < words; k++) {
    for (int p = 0; p < P; p++) {
      const char* line = lines + p * stride + k * 2 * kPanel;
      Shorts low = widen_bytes(line), high = widen_bytes(line + 2 * kLanes);
      fetch_ahead(line);
      for (int m = 0; m < M; m++) {
        Shorts value = (Shorts)splat(pairs[m * words + k]);
        sums[m][p][0] += multiply_pairs(low, value);
        sums[m][p][1] += multiply_pairs(high, value);
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++)
      for (int half = 0; half < 2; half++) {
        int at = p * kPanel + half * kLanes;
        Floats scale = load_floats(w.scales + panel * kPanel + at) * x.scales[row + m];
        store_floats(c + m * ldc + at, __builtin_convertvector(sums[m][p][half], Floats) * scale);
      }
}

template <int M>
inline void tile_int4(const Matrix& w, int64_t panel, const Rows& x, int64_t row, float* c, int64_t ldc) {
  Floats sums[M] = {};
  const char* group = w.panel_data(panel);
  const int64_t groups = x.depth / kGroup;
  const int8_t* bytes = x.bytes.data() + row * x.depth;
  const float* scales = x.scales.data() + row * groups;
  const int32_t* offsets = x.offsets.data() + row * groups;
  const Shorts ones = Shorts{} + int16_t(1);
  for (int64_t g = 0; g < groups; g++, group += kGroupBytes) {
    Floats scale = load_floats((const bfloat*)group);
    const auto* lines = (const uint8_t*)group + kNarrowPanel * 2;
    fetch_ahead(group);
    Shorts pairs[M] = {};  // 8 products of at most 15 * 127 * 2 fit into 16 bits
    for (int line = 0; line < 4; line++) {
      Bytes packed = load<Bytes>(lines + line * kNarrowPanel * 4);
      if (line % 2 == 0) fetch_ahead(lines + line * kNarrowPanel * 4);
      Bytes low = packed & uint8_t(15);
      Bytes high = (Bytes)((Words)packed >> 4) & uint8_t(15);
      for (int m = 0; m < M; m++) {
        const int8_t* at = bytes + m * x.depth + g * kGroup + line * 8;
        pairs[m] += multiply_byte_pairs(low, (Bytes)splat(load<int32_t>(at)));
        pairs[m] += multiply_byte_pairs(high, (Bytes)splat(load<int32_t>(at + 4)));
      }
    }
    for (int m = 0; m < M; m++) {
      Ints whole = multiply_pairs(pairs[m], ones) - offsets[m * groups + g];
      sums[m] += __builtin_convertvector(whole, Floats) * (scale * scales[m * groups + g]);
    }
  }
  for (int m = 0; m < M; m++) store_floats(c + m * ldc, sums[m]);
}

// --- products --------------------------------------------------------------------------------------------------

template <int M>
inline void multiply_tile(const Matrix& w, int64_t panel, int64_t panels, const Rows& x, int64_t row, int64_t from,
                          int64_t to, float* c, int64_t ldc) {
  constexpr int P = M == 1 ? 4 : M == 2 ? 2 : 1;  // enough sums at once to hide the latency of adding to one
  const float* values = x.values + row * x.depth;
  int64_t done = 0;
  switch (w.kind) {
    case kFloat32:
      for (; done + P <= panels; done += P)
        tile_float32<M, P>(w, panel + done, values, x.depth, from, to, c + done * kPanel, ldc);
      for (; done < panels; done++)
        tile_float32<M, 1>(w, panel + done, values, x.depth, from, to, c + done * kPanel, ldc);
      break;
    case kBfloat16:
      for (; done + P <= panels; done += P)
        tile_bfloat16<M, P>(w, panel + done, values, x.depth, from, to, c + done * kPanel, ldc);
      for (; done < panels; done++)
        tile_bfloat16<M, 1>(w, panel + done, values, x.depth, from, to, c + done * kPanel, ldc);
      break;
    case kInt8:
      for (; done < panels; done++) tile_int8<M, 1>(w, panel + done, x, row, c + done * kPanel, ldc);
      break;
    default:
      for (; done < panels; done++) tile_int4<M>(w, panel + done, x, row, c + done * kNarrowPanel, ldc);
  }
}

template <int M>
inline void multiply_rows(int64_t rows, const Matrix& w, int64_t panel, int64_t panels, const Rows& x, int64_t row,
                          int64_t from, int64_t to, float* c, int64_t ldc) {
  if constexpr (M > 1) {
    if (rows < M) return multiply_rows<M - 1>(rows, w, panel, panels, x, row, from, to, c, ldc);
  }
  multiply_tile<M>(w, panel, panels, x, row, from, to, c, ldc);
}

// --- many rows -------------------------------------------------------------------------------------------------

// Weights of float32 or bfloat16 that many rows pass over are brought into a form that needs no more work, a stretch of
// one panel at a time, small enough for the first cache. The rows' stretch is copied too, since rows that lie a power of
// two apart get in each other's way there.
struct Wide {
  alignas(64) float weights[kWords * kPanel];
  alignas(64) float rows[kBlockRows * kRowWords];
};

// c [M, two vectors] (+)= rows times weights; `ahead` is fetched into the second cache meanwhile, `step` bytes a word.
template <int M>
inline void tile_wide(const float* rows, const float* weights, int64_t words, bool adds, float* c, int64_t ldc,
                      const char* ahead, int64_t step) {
  Floats sums[M][2];
  for (int m = 0; m < M; m++)
    for (int half = 0; half < 2; half++) sums[m][half] = adds ? load_floats(c + m * ldc + half * kLanes) : Floats{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < words; k++) {
    Floats low = load_floats(weights + k * kPanel), high = load_floats(weights + k * kPanel + kLanes);
    __builtin_prefetch(ahead + k * step, 0, 2);
    for (int m = 0; m < M; m++) {
      Floats value = splat(rows[m * kRowWords + k]);
      sums[m][0] += value * low;
      sums[m][1] += value * high;
    }
  }
  for (int m = 0; m < M; m++)
    for (int half = 0; half < 2; half++) store_floats(c + m * ldc + half * kLanes, sums[m][half]);
}

template <int M>
inline void tiles_wide(int64_t count, const float* rows, const float* weights, int64_t words, bool adds, float* c,
                       int64_t ldc, const char* ahead, int64_t step) {
  if constexpr (M > 1) {
    if (count < M) return tiles_wide<M - 1>(count, rows, weights, words, adds, c, ldc, ahead, step);
  }
  tile_wide<M>(rows, weights, words, adds, c, ldc, ahead, step);
}

// Inputs [from, from + count) of a panel of bfloat16; `from` is even.
inline void widen_panel(const char* panel, int64_t from, int64_t count, float* to) {
  const auto* line = (const uint32_t*)panel + from / 2 * kPanel;
  for (int64_t k = 0; k < count; k += 2, line += kPanel, to += 2 * kPanel)
    for (int half = 0; half < kPanel; half += kLanes) {
      Words both = load<Words>(line + half);
      store(to + half, both << 16);
      store(to + kPanel + half, both & 0xffff0000u);
    }
}

inline void multiply_wide(const Matrix& w, int64_t panel, int64_t panels, const Rows& x, int64_t row, int64_t rows, float* c,
                   int64_t ldc) {
  thread_local Wide wide;
  const int64_t words = w.depth, bytes = w.panel_bytes() / words;
  const int64_t tiles = (rows + kWideRows - 1) / kWideRows;
  for (int64_t from = 0; from < words; from += kWords) {
    const int64_t count = std::min(kWords, words - from);
    for (int64_t r = 0; r < rows; r++) std::copy_n(x.values + (row + r) * words + from, count, wide.rows + r * kRowWords);
    for (int64_t p = 0; p < panels; p++) {
      const float* weights = wide.weights;
      if (w.kind == kFloat32)
        weights = (const float*)w.panel_data(panel + p) + from * kPanel;
      else
        widen_panel(w.panel_data(panel + p), from, count, wide.weights);
      const bool is_last = p + 1 == panels;
      const char* ahead = w.panel_data(is_last ? panel : panel + p + 1) + (is_last ? from + count : from) * bytes;
      for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t first = rows * tile / tiles, next = rows * (tile + 1) / tiles;
        tiles_wide<kWideRows>(next - first, wide.rows + first * kRowWords, weights, count, from,
                                 c + first * ldc + p * kPanel, ldc, ahead + tile * count * bytes / tiles,
                                 bytes / tiles);
      }
    }
  }
}

// c [rows, panels * width] = rows of x times some panels.
inline void multiply_block(const Matrix& w, int64_t panel, int64_t panels, const Rows& x, int64_t row, int64_t rows,
                           float* c, int64_t ldc) {
  const bool is_whole = w.kind == kInt8 || w.kind == kInt4;
  if (rows >= kManyRowsFrom && !is_whole) return multiply_wide(w, panel, panels, x, row, rows, c, ldc);
  const int64_t tiles = (rows + kMaxRows - 1) / kMaxRows;
  const int64_t step = tiles > 1 ? 1 : panels;  // a panel stays in cache while all rows pass over it
  for (int64_t p = 0; p < panels; p += step)
    for (int64_t tile = 0; tile < tiles; tile++) {
      int64_t first = rows * tile / tiles, next = rows * (tile + 1) / tiles;
      multiply_rows<kMaxRows>(next - first, w, panel + p, step, x, row + first, 0, w.depth,
                              c + first * ldc + p * w.panel(), ldc);
    }
}

// How a product is shared out: so many panels and rows at a time.
struct Cut {
  int64_t panels, rows, column_parts, row_parts;

  Cut(const Matrix& w, int64_t all_rows, int threads) {
    rows = std::min(all_rows, kBlockRows);
    row_parts = (all_rows + rows - 1) / rows;
    int64_t wanted = (4 * threads + row_parts - 1) / row_parts;  // parts, so that nobody waits long for the last one
    panels = std::clamp<int64_t>(w.panels() / wanted, 4, rows > 48 ? 32 : 16);  // many rows are copied for each part
    column_parts = (w.panels() + panels - 1) / panels;
  }
  int64_t parts() const { return column_parts * row_parts; }
};

// x times w, in parts; `emit(row, rows, column, columns, values, ld)` takes what comes out, the bias added.
template <class Emit>
void multiply(Team& team, const Matrix& w, const Rows& x, int64_t all_rows, Emit emit) {
  const Cut cut(w, all_rows, team.size());
  thread_local std::vector<float> held;
  held.resize(std::max<size_t>(held.size(), cut.rows * cut.panels * kPanel));
  float* values = held.data();
  team.share(cut.parts(), 1, [&](int64_t part, int64_t) {
    const int64_t panel = part / cut.row_parts * cut.panels, row = part % cut.row_parts * cut.rows;
    const int64_t panels = std::min(cut.panels, w.panels() - panel), rows = std::min(cut.rows, all_rows - row);
    const int64_t ld = panels * w.panel(), column = panel * w.panel();
    multiply_block(w, panel, panels, x, row, rows, values, ld);
    const int64_t columns = std::min(ld, w.columns - column);
    if (w.bias)
      for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < columns; n++) values[r * ld + n] += w.bias[column + n];
    emit(row, rows, column, columns, values, ld);
  });
}

}  // namespace plexus
