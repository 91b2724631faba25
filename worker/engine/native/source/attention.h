// Attention of the step's query rows over the paged cache, read in place.
//
// A sequence's cache is some runs of consecutive slots. The work is cut into items of one sequence, one key head and some
// positions; all query heads that share the key head go together, so a key is read once for them. Few query rows (a
// decode step) take dot products with the keys as they lie; many rows (a prompt) first widen a block of keys and then
// use products of small matrices. Softmax runs along with the blocks, in float32. With few items and a long context, an
// item is cut once more along its keys, and the parts are joined at the end.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "simd.h"
#include "team.h"

namespace plexus {

struct Run {  // positions [start, stop) in consecutive slots from `slot` on
  int64_t start, stop, slot;
};

struct Span {  // packed rows from `row` on are positions [start, stop) of a sequence, whose cache is runs [first, last)
  int64_t row, start, stop, first_run, last_run;
};

struct Cache {  // of one layer: keys [kv_heads, slots, key_dim], values [kv_heads, slots, value_dim]
  void* keys;
  void* values;
  int64_t kv_heads, slots, key_dim, value_dim;
  int32_t is_bfloat16;
};

struct Attention {
  Cache cache;
  int64_t heads;
  float scale;
  float softcap;       // 0: none
  int64_t window;      // 0: none
  const float* sinks;  // [heads] or null: a score that takes part in the softmax and has no value
};

constexpr int64_t kKeys = 64;       // of a block
constexpr int64_t kFewRows = 8;     // query rows up to which keys are used as they lie
constexpr int64_t kManyRows = 64;   // query rows of an item otherwise
constexpr int64_t kPartKeys = 512;  // an item is not cut into parts of fewer keys
constexpr int64_t kWidth = 2 * kLanes;  // columns of a panel
constexpr int kProductRows = 6;      // of a product of small matrices: what the registers hold
constexpr float kHidden = -1e30f;

struct Item {
  int64_t span, head, start, stop;  // positions of the query rows
  int64_t low, high;                // positions of the keys
  int64_t part, parts, partial;     // which part of how many; where its result waits to be joined
};

struct Scratch {
  std::vector<float> query, scores, keys, values, out, highest, total;
};

// --- one item --------------------------------------------------------------------------------------------------

// Softmax as it goes along: what was summed so far is scaled to the new highest score.
struct Softmax {
  float* highest;  // [rows]
  float* total;
  float* out;  // [rows, dim]
  int64_t rows, dim;

  void begin(const Attention& a, int64_t first_head, int64_t groups, bool has_sinks) {
    std::fill(out, out + rows * dim, 0.0f);
    for (int64_t r = 0; r < rows; r++) {
      highest[r] = has_sinks ? a.sinks[first_head + r % groups] : kHidden;
      total[r] = has_sinks ? 1.0f : 0.0f;
    }
  }
  void rescale(int64_t row, float factor) {
    total[row] *= factor;
    if (factor == 1.0f) return;
    float* at = out + row * dim;
    for (int64_t d = 0; d < dim; d += kLanes) store_floats(at + d, load_floats(at + d) * factor);
  }
};

inline float exp_of(float x) { return exp(splat(x))[0]; }

inline Floats cap(Floats score, float softcap) { return tanh(score * (1.0f / softcap)) * softcap; }

// Dot products of G query rows with the keys of a block: scores [row][key], kKeys apart.
template <int G, class T>
inline void dot_block(const float* query, int64_t dim, const T* keys, int64_t count, float scale, float* scores) {
  for (int64_t t = 0; t < count; t++) {
    const T* key = keys + t * dim;
    Floats even[G] = {}, odd[G] = {};
    int64_t d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      Floats first = load_floats(key + d), second = load_floats(key + d + kLanes);
      for (int g = 0; g < G; g++) {
        even[g] += load_floats(query + g * dim + d) * first;
        odd[g] += load_floats(query + g * dim + d + kLanes) * second;
      }
    }
    for (; d < dim; d += kLanes) {
      Floats first = load_floats(key + d);
      for (int g = 0; g < G; g++) even[g] += load_floats(query + g * dim + d) * first;
    }
    for (int g = 0; g < G; g++) scores[g * kKeys + t] = sum(even[g] + odd[g]) * scale;
  }
}

template <int G, class T>
inline void weigh_block(const float* weights, const T* values, int64_t dim, int64_t count, float* out) {
  constexpr int C = 4;  // vectors of a value held at once
  int64_t d = 0;
  for (; d + C * kLanes <= dim; d += C * kLanes) {
    Floats sums[G][C];
    for (int g = 0; g < G; g++)
      for (int c = 0; c < C; c++) sums[g][c] = load_floats(out + g * dim + d + c * kLanes);
    for (int64_t t = 0; t < count; t++)
      for (int c = 0; c < C; c++) {
        Floats value = load_floats(values + t * dim + d + c * kLanes);
        for (int g = 0; g < G; g++) sums[g][c] += value * weights[g * kKeys + t];
      }
    for (int g = 0; g < G; g++)
      for (int c = 0; c < C; c++) store_floats(out + g * dim + d + c * kLanes, sums[g][c]);
  }
  for (; d < dim; d += kLanes)
    for (int g = 0; g < G; g++) {
      Floats total = load_floats(out + g * dim + d);
      for (int64_t t = 0; t < count; t++) total += load_floats(values + t * dim + d) * weights[g * kKeys + t];
      store_floats(out + g * dim + d, total);
    }
}

// Row r's position is item.start + r / groups; it sees keys [from(r), position].
inline int64_t first_seen(int64_t position, int64_t window) { return window ? std::max<int64_t>(0, position - window + 1) : 0; }

template <class T>
void attend_few(const Attention& a, const Item& item, const float* query, const T* keys, const T* values,
                int64_t at, int64_t count, Softmax& softmax, float* scores) {
  const int64_t rows = softmax.rows, groups = a.heads / a.cache.kv_heads, dim = a.cache.key_dim;
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) dot_block<2>(query + r * dim, dim, keys, count, a.scale, scores + r * kKeys);
  if (r < rows) dot_block<1>(query + r * dim, dim, keys, count, a.scale, scores + r * kKeys);
  for (r = 0; r < rows; r++) {
    float* row = scores + r * kKeys;
    const int64_t position = item.start + r / groups, from = first_seen(position, a.window);
    const int64_t low = std::clamp<int64_t>(from - at, 0, count), high = std::clamp<int64_t>(position + 1 - at, 0, count);
    if (a.softcap != 0)
      for (int64_t t = 0; t < kKeys; t += kLanes) store_floats(row + t, cap(load_floats(row + t), a.softcap));
    for (int64_t t = 0; t < low; t++) row[t] = kHidden;
    for (int64_t t = high; t < kKeys; t++) row[t] = kHidden;
    Floats top = splat(softmax.highest[r]);
    for (int64_t t = 0; t < kKeys; t += kLanes) top = max(top, load_floats(row + t));
    float highest = softmax.highest[r];
    for (int lane = 0; lane < kLanes; lane++) highest = std::max(highest, top[lane]);
    softmax.rescale(r, highest > softmax.highest[r] ? exp_of(softmax.highest[r] - highest) : 1.0f);
    softmax.highest[r] = highest;
    Floats total = splat(0.0f), none = splat(0.0f), hidden = splat(kHidden);
    for (int64_t t = 0; t < kKeys; t += kLanes) {
      Floats score = load_floats(row + t);
      Floats weight = score > hidden ? exp(score - highest) : none;
      store_floats(row + t, weight);
      total += weight;
    }
    softmax.total[r] += sum(total);
  }
  const int64_t value_dim = a.cache.value_dim;
  for (r = 0; r + 2 <= rows; r += 2)
    weigh_block<2>(scores + r * kKeys, values, value_dim, count, softmax.out + r * value_dim);
  if (r < rows) weigh_block<1>(scores + r * kKeys, values, value_dim, count, softmax.out + r * value_dim);
}

// c [M, two vectors] (+)= a times b [depth][two vectors]; a is [M][depth], or [depth][M] if `turned`, its lines lda apart
template <int M, bool turned>
inline void small_product(const float* a, int64_t lda, const float* b, int64_t depth, float* c, int64_t ldc, bool adds) {
  Floats sums[M][2];
  for (int m = 0; m < M; m++)
    for (int half = 0; half < 2; half++) sums[m][half] = adds ? load_floats(c + m * ldc + half * kLanes) : Floats{};
  for (int64_t k = 0; k < depth; k++) {
    Floats low = load_floats(b + k * kWidth), high = load_floats(b + k * kWidth + kLanes);
    for (int m = 0; m < M; m++) {
      Floats value = splat(turned ? a[k * lda + m] : a[m * lda + k]);
      sums[m][0] += value * low;
      sums[m][1] += value * high;
    }
  }
  for (int m = 0; m < M; m++)
    for (int half = 0; half < 2; half++) store_floats(c + m * ldc + half * kLanes, sums[m][half]);
}

template <int M, bool turned>
inline void small_products(int64_t rows, const float* a, int64_t lda, const float* b, int64_t depth, float* c, int64_t ldc,
                           bool adds) {
  if constexpr (M > 1) {
    if (rows < M) return small_products<M - 1, turned>(rows, a, lda, b, depth, c, ldc, adds);
  }
  small_product<M, turned>(a, lda, b, depth, c, ldc, adds);
}

// b lies in panels of two vectors, one after the other and `stride` apart: rows that lie a power of two apart would get
// in each other's way in the first cache.
template <bool turned>
inline void product(int64_t rows, int64_t columns, const float* a, int64_t lda, const float* b, int64_t stride,
                    int64_t depth, float* c, int64_t ldc, bool adds) {
  const int64_t tiles = (rows + kProductRows - 1) / kProductRows;  // of nearly the same size: small ones are slow
  for (int64_t n = 0; n < columns; n += kWidth, b += stride)
    for (int64_t tile = 0; tile < tiles; tile++) {
      const int64_t m = rows * tile / tiles, next = rows * (tile + 1) / tiles;
      small_products<kProductRows, turned>(next - m, a + m * (turned ? 1 : lda), lda, b, depth, c + m * ldc + n, ldc, adds);
    }
}

template <class T>
const float* widen_panels(const T* from, int64_t count, int64_t dim, std::vector<float>& held) {
  if (int64_t(held.size()) < kKeys * dim) held.resize(kKeys * dim);
  for (int64_t t = 0; t < count; t++)
    for (int64_t d = 0; d < dim; d += kLanes)
      store_floats(held.data() + d / kWidth * kKeys * kWidth + t * kWidth + d % kWidth, load_floats(from + t * dim + d));
  return held.data();
}

template <class T>
const float* widen_rows(const T* from, int64_t count, int64_t dim, std::vector<float>& held) {
  if constexpr (sizeof(T) == 4) {
    return (const float*)from;
  } else {
    if (int64_t(held.size()) < count * dim) held.resize(kKeys * dim);
    for (int64_t i = 0; i < count * dim; i += kLanes) store_floats(held.data() + i, load_floats(from + i));
    return held.data();
  }
}

// `query` is in panels of [key_dim][two vectors], the scale within; scores are [key][width], softmax runs along the keys.
template <class T>
void attend_many(const Attention& a, const Item& item, const float* query, int64_t width, const T* keys, const T* values,
                 int64_t at, int64_t count, Softmax& softmax, Scratch& scratch) {
  const int64_t rows = softmax.rows, groups = a.heads / a.cache.kv_heads;
  float* scores = scratch.scores.data();
  const float* wide_keys = widen_rows(keys, count, a.cache.key_dim, scratch.keys);
  product<false>(count, width, wide_keys, a.cache.key_dim, query, a.cache.key_dim * kWidth, a.cache.key_dim, scores, width,
                 false);
  const bool is_masked = at + count - 1 > item.start || (a.window && at < item.stop - a.window);
  for (int64_t first = 0; first < rows; first += kLanes) {
    Ints last, since;
    for (int lane = 0; lane < kLanes; lane++) {
      int64_t position = item.start + (first + lane) / groups;
      last[lane] = int32_t(std::min<int64_t>(position - at, kKeys));
      since[lane] = int32_t(std::max<int64_t>(first_seen(position, a.window) - at, 0));
    }
    Floats top = load_floats(softmax.highest + first), hidden = splat(kHidden), none = splat(0.0f);
    const Floats before = top;
    for (int64_t t = 0; t < count; t++) {
      Floats score = load_floats(scores + t * width + first);
      if (a.softcap != 0) score = cap(score, a.softcap);
      if (is_masked) score = ((splat(int32_t(t)) <= last) & (splat(int32_t(t)) >= since)) ? score : hidden;
      store_floats(scores + t * width + first, score);
      top = max(top, score);
    }
    Floats total = splat(0.0f);
    for (int64_t t = 0; t < count; t++) {
      Floats score = load_floats(scores + t * width + first);
      Floats weight = score > hidden ? exp(score - top) : none;
      store_floats(scores + t * width + first, weight);
      total += weight;
    }
    Floats factor = exp(before - top);
    for (int lane = 0; lane < kLanes && first + lane < rows; lane++)
      softmax.rescale(first + lane, before[lane] == top[lane] ? 1.0f : factor[lane]);
    store_floats(softmax.highest + first, top);
    store_floats(softmax.total + first, load_floats(softmax.total + first) + total);
  }
  const int64_t dim = a.cache.value_dim;
  const float* wide_values = widen_panels(values, count, dim, scratch.values);
  product<true>(rows, dim, scores, width, wide_values, kKeys * kWidth, count, softmax.out, dim, true);
}

template <class T>
void attend_item(const Attention& a, const Span& span, const Run* runs, const Item& item, const float* query,
                 float* partial_out, float* partial_lse, float* out) {
  thread_local Scratch scratch;
  const int64_t groups = a.heads / a.cache.kv_heads, dim = a.cache.key_dim, value_dim = a.cache.value_dim;
  const int64_t rows = (item.stop - item.start) * groups, head = item.head * groups;
  const int64_t width = (rows + kWidth - 1) / kWidth * kWidth;
  const bool is_few = rows <= kFewRows;
  auto room = [](std::vector<float>& held, int64_t size) {
    if (int64_t(held.size()) < size) held.resize(size);
    return held.data();
  };
  float* own = room(scratch.query, width * dim);
  room(scratch.scores, width * kKeys);
  if (!is_few) std::fill(own, own + width * dim, 0.0f);
  for (int64_t r = 0; r < rows; r++) {
    const float* from = query + ((span.row + item.start - span.start + r / groups) * a.heads + head + r % groups) * dim;
    if (is_few)
      std::copy(from, from + dim, own + r * dim);
    else
      for (int64_t d = 0; d < dim; d++) own[(r / kWidth * dim + d) * kWidth + r % kWidth] = from[d] * a.scale;
  }
  Softmax softmax{room(scratch.highest, width), room(scratch.total, width), room(scratch.out, width * value_dim), rows,
                  value_dim};
  std::fill(softmax.highest, softmax.highest + width, kHidden);
  std::fill(softmax.total, softmax.total + width, 0.0f);
  softmax.begin(a, head, groups, a.sinks && item.part == 0);
  const T* keys = (const T*)a.cache.keys + item.head * a.cache.slots * dim;
  const T* values = (const T*)a.cache.values + item.head * a.cache.slots * value_dim;
  for (int64_t i = span.first_run; i < span.last_run; i++) {
    const Run& run = runs[i];
    const int64_t high = std::min(run.stop, item.high);
    for (int64_t at = std::max(run.start, item.low); at < high; at += kKeys) {
      const int64_t count = std::min(kKeys, high - at), slot = run.slot + at - run.start;
      if (is_few)
        attend_few(a, item, own, keys + slot * dim, values + slot * value_dim, at, count, softmax, scratch.scores.data());
      else
        attend_many(a, item, own, width, keys + slot * dim, values + slot * value_dim, at, count, softmax, scratch);
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    const float inverse = softmax.total[r] > 0 ? 1 / softmax.total[r] : 0;
    float* to = out + ((span.row + item.start - span.start + r / groups) * a.heads + head + r % groups) * value_dim;
    if (item.parts > 1) {
      to = partial_out + (item.partial + r) * value_dim;
      partial_lse[item.partial + r] = softmax.total[r] > 0 ? softmax.highest[r] + std::log(softmax.total[r]) : kHidden;
    }
    for (int64_t d = 0; d < value_dim; d++) to[d] = softmax.out[r * value_dim + d] * inverse;
  }
}

// --- all items -------------------------------------------------------------------------------------------------

// A step's items for one kind of layer. The longest come first, so that the last to end is a short one.
struct Cuts {
  std::vector<Item> items;
  int64_t partial_rows = 0;

  void make(const Span* spans, int64_t num_spans, int64_t heads, int64_t kv_heads, int64_t window, int threads) {
    items.clear();
    partial_rows = 0;
    const int64_t groups = heads / kv_heads, many = std::max<int64_t>(1, kManyRows / groups);
    int64_t whole = 0;
    for (int64_t s = 0; s < num_spans; s++) whole += kv_heads * ((spans[s].stop - spans[s].start + many - 1) / many);
    const int64_t wanted = whole < 4 * threads ? (4 * threads + whole - 1) / whole : 1;
    for (int64_t s = 0; s < num_spans; s++)
      for (int64_t start = spans[s].start; start < spans[s].stop; start += many) {
        const int64_t stop = std::min(start + many, spans[s].stop), low = first_seen(start, window);
        const int64_t parts = threads == 1 ? 1 : std::clamp<int64_t>((stop - low) / kPartKeys, 1, wanted);
        const int64_t keys = ((stop - low + parts - 1) / parts + kKeys - 1) / kKeys * kKeys;
        for (int64_t head = 0; head < kv_heads; head++)
          for (int64_t part = 0; part < parts; part++) {
            items.push_back({s, head, start, stop, low + part * keys, std::min(low + (part + 1) * keys, stop), part,
                             parts, partial_rows});
            if (parts > 1) partial_rows += (stop - start) * groups;
          }
      }
    std::stable_sort(items.begin(), items.end(), [](const Item& x, const Item& y) {
      return (x.high - x.low) * (x.stop - x.start) > (y.high - y.low) * (y.stop - y.start);
    });
  }
};

// The parts of an item, joined by how much of the softmax each holds.
inline void join(const Attention& a, const Span& span, const Item& item, const std::vector<float>& outs,
                 const std::vector<float>& lses, float* out) {
  const int64_t groups = a.heads / a.cache.kv_heads, rows = (item.stop - item.start) * groups, dim = a.cache.value_dim;
  for (int64_t r = 0; r < rows; r++) {
    float highest = kHidden, total = 0;
    for (int64_t part = 0; part < item.parts; part++) highest = std::max(highest, lses[item.partial + part * rows + r]);
    float* to = out + ((span.row + item.start - span.start + r / groups) * a.heads + item.head * groups + r % groups) * dim;
    std::fill(to, to + dim, 0.0f);
    for (int64_t part = 0; part < item.parts; part++) {
      const int64_t at = item.partial + part * rows + r;
      const float weight = exp_of(lses[at] - highest);
      total += weight;
      for (int64_t d = 0; d < dim; d++) to[d] += outs[at * dim + d] * weight;
    }
    for (int64_t d = 0; d < dim; d++) to[d] /= total;
  }
}

// query [rows, heads, key_dim] and out [rows, heads, value_dim], float32. Called by all threads of the team.
inline void attend(Team& team, const Attention& a, const Span* spans, const Run* runs, const Cuts& cuts,
                   const float* query, std::vector<float>& outs, std::vector<float>& lses, float* out) {
  team.share(cuts.items.size(), 1, [&](int64_t index, int64_t) {
    const Item& item = cuts.items[index];
    if (a.cache.is_bfloat16)
      attend_item<bfloat>(a, spans[item.span], runs, item, query, outs.data(), lses.data(), out);
    else
      attend_item<float>(a, spans[item.span], runs, item, query, outs.data(), lses.data(), out);
  });
  if (cuts.partial_rows)
    team.share(cuts.items.size(), 1, [&](int64_t index, int64_t) {
      const Item& item = cuts.items[index];
      if (item.parts > 1 && item.part == 0) join(a, spans[item.span], item, outs, lses, out);
    });
}

}  // namespace plexus
