// The forward pass of a decoder-only transformer of the Llama kind, in one go over all layers.
//
// Activations are float32 throughout; weights and cache have their own types. Every phase shares its work out over the
// team; nothing is allocated once the largest step was seen.
#pragma once
#include "attention.h"
#include "matrix.h"

namespace plexus {

enum Activation : int32_t { kSilu = 0, kGeluTanh = 1, kGelu = 2 };

struct Layer {
  Matrix qkv, output, gate, up, down;
  const float* input_norm;
  const float* query_norm;        // per head, or null
  const float* key_norm;
  const float* after_attention;   // norm of what attention adds, or null
  const float* mlp_norm;
  const float* after_mlp;         // norm of what the feed-forward part adds, or null
  Cache cache;
  int64_t window;                 // 0: none
  int32_t rope;                   // which of the model's two
  int32_t table;                  // which of the step's two kinds of block tables
};

struct Model {
  const Layer* layers;
  int64_t num_layers;
  Matrix embedding, head;
  const float* final_norm;
  int64_t hidden, heads, head_dim, ffn, rotary_dim;
  float epsilon, scale, softcap, final_softcap, embedding_scale;
  const float* frequencies[2];  // [rotary_dim / 2]
  float rope_scale[2];          // of cosine and sine
  int32_t activation;
};

struct Tables {  // where the step's tokens go and where the sequences' caches are, for one kind of layer
  const int64_t* slots;
  const Span* spans;
  const Run* runs;
};

struct Step {
  int64_t rows, num_spans, num_kept;
  const int64_t* ids;
  const int64_t* positions;
  const int64_t* kept;  // rows whose logits are wanted
  Tables tables[2];
  float* logits;  // [num_kept, vocabulary]
};

struct Workspace {
  std::vector<float> hidden, normed, qkv, query, attended, gated, added, angles, outs, lses;
  Rows rows;
  Cuts cuts[2];
  // Of the kept rows, packed anew: the last layer computes no others.
  std::vector<float> kept_hidden;
  std::vector<Span> kept_spans;
  Cuts kept_cuts;
};

// The spans of those rows alone, as they lie when packed one behind the other. Rows ascend.
inline void narrow_spans(const Span* spans, const int64_t* rows, int64_t count, std::vector<Span>& narrowed) {
  narrowed.clear();
  for (int64_t i = 0; i < count; i++) {
    while (rows[i] >= spans->row + spans->stop - spans->start) spans++;
    const int64_t position = spans->start + rows[i] - spans->row;
    if (i && rows[i] == rows[i - 1] + 1 && rows[i] > spans->row)
      narrowed.back().stop++;
    else
      narrowed.push_back({i, position, position + 1, spans->first_run, spans->last_run});
  }
}

inline void rms_norm(const float* from, const float* weight, int64_t size, float epsilon, float* to) {
  Floats squares = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    Floats x = load_floats(from + i);
    squares += x * x;
  }
  float total = sum(squares);
  for (; i < size; i++) total += from[i] * from[i];
  const float factor = 1.0f / std::sqrt(total / float(size) + epsilon);
  for (i = 0; i + kLanes <= size; i += kLanes) store_floats(to + i, load_floats(from + i) * factor * load_floats(weight + i));
  for (; i < size; i++) to[i] = from[i] * factor * weight[i];
}

inline Floats activate(Floats x, int32_t activation) {
  if (activation == kSilu) return x / (1.0f + exp(-x));
  if (activation == kGeluTanh) return 0.5f * x * (1.0f + tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
  Floats result;
  for (int lane = 0; lane < kLanes; lane++) result[lane] = 0.5f * x[lane] * (1.0f + std::erf(x[lane] * 0.7071067812f));
  return result;
}

// The gated half of a feed-forward layer: gate and up are multiplied panel by panel, so neither is written out.
inline void multiply_gated(Team& team, const Layer& layer, const Rows& x, int64_t all_rows, int32_t activation, float* out) {
  const Matrix& w = layer.gate;
  const Cut cut(w, all_rows, team.size());
  thread_local std::vector<float> held;
  const int64_t size = cut.rows * cut.panels * kPanel;
  held.resize(std::max<size_t>(held.size(), 2 * size));
  float *gate = held.data(), *up = gate + size;
  team.share(cut.parts(), 1, [&](int64_t part, int64_t) {
    const int64_t panel = part / cut.row_parts * cut.panels, row = part % cut.row_parts * cut.rows;
    const int64_t panels = std::min(cut.panels, w.panels() - panel), rows = std::min(cut.rows, all_rows - row);
    const int64_t ld = panels * w.panel(), column = panel * w.panel();
    multiply_block(w, panel, panels, x, row, rows, gate, ld);
    multiply_block(layer.up, panel, panels, x, row, rows, up, ld);
    const int64_t columns = std::min(ld, w.columns - column);
    for (int64_t r = 0; r < rows; r++) {
      float* to = out + (row + r) * w.columns + column;
      for (int64_t n = 0; n < columns; n += kLanes) {
        Floats a = load_floats(gate + r * ld + n), b = load_floats(up + r * ld + n);
        if (w.bias || layer.up.bias)
          for (int lane = 0; lane < kLanes && n + lane < columns; lane++) {
            if (w.bias) a[lane] += w.bias[column + n + lane];
            if (layer.up.bias) b[lane] += layer.up.bias[column + n + lane];
          }
        Floats product = activate(a, activation) * b;
        if (n + kLanes <= columns)
          store_floats(to + n, product);
        else
          for (int lane = 0; n + lane < columns; lane++) to[n + lane] = product[lane];
      }
    }
  });
}

class Forward {
 public:
  Forward(Team& team, const Model& model, const Step& step, Workspace& space)
      : team_(team), m_(model), step_(step), w_(space), rows_(step.rows), hidden_(space.hidden.data()) {}

  // Sizes everything; by one thread, before the others begin.
  static void prepare(const Model& m, const Step& step, Workspace& w, int threads) {
    int64_t widest = 0, kv = 0;
    for (int64_t i = 0; i < m.num_layers; i++) {
      widest = std::max(widest, m.layers[i].qkv.columns);
      kv = std::max(kv, m.layers[i].cache.kv_heads);
    }
    auto room = [](std::vector<float>& held, int64_t size) {
      if (int64_t(held.size()) < size) held.resize(size);
    };
    const int64_t rows = step.rows, query = m.heads * m.head_dim;
    room(w.hidden, rows * m.hidden);
    room(w.normed, std::max(rows, step.num_kept) * m.hidden);
    room(w.qkv, rows * widest);
    room(w.query, rows * query);
    room(w.attended, rows * query);
    room(w.gated, rows * m.ffn);
    room(w.added, rows * m.hidden);
    room(w.angles, 2 * rows * m.rotary_dim);
    bool has_made[2] = {false, false};
    int64_t partial_rows = 0;
    for (int64_t i = 0; i < m.num_layers; i++) {
      const Layer& layer = m.layers[i];
      if (has_made[layer.table]) continue;
      has_made[layer.table] = true;
      w.cuts[layer.table].make(step.tables[layer.table].spans, step.num_spans, m.heads, layer.cache.kv_heads,
                               layer.window, threads);
      partial_rows = std::max(partial_rows, w.cuts[layer.table].partial_rows);
    }
    if (narrows(step) && step.num_kept) {
      const Layer& last = m.layers[m.num_layers - 1];
      room(w.kept_hidden, step.num_kept * m.hidden);
      narrow_spans(step.tables[last.table].spans, step.kept, step.num_kept, w.kept_spans);
      w.kept_cuts.make(w.kept_spans.data(), w.kept_spans.size(), m.heads, last.cache.kv_heads, last.window, threads);
      partial_rows = std::max(partial_rows, w.kept_cuts.partial_rows);
    }
    room(w.outs, partial_rows * m.head_dim);
    room(w.lses, partial_rows);
    const int64_t inputs = std::max({m.hidden, query, m.ffn});
    for (int32_t kind : {kInt8, kInt4}) w.rows.reserve(kind, nullptr, rows, inputs);
  }

  void run() {
    embed();
    for (int64_t i = 0; i < m_.num_layers; i++) {
      const Layer& layer = m_.layers[i];
      const bool is_narrowed = i + 1 == m_.num_layers && narrows(step_);
      project(layer, is_narrowed);
      if (!rows_) return;
      attention(layer, is_narrowed);
      feed_forward(layer);
    }
    logits();
  }

 private:
  // Whether rows are left out once the last layer has their keys and values.
  static bool narrows(const Step& step) { return step.num_kept < step.rows; }

  int64_t grain() const { return std::max<int64_t>(1, rows_ / (4 * team_.size())); }

  void embed() {
    const int64_t half = m_.rotary_dim / 2, rows = rows_;
    team_.share(rows, grain(), [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; r++) {
        float* hidden = hidden_ + r * m_.hidden;
        unpack_row(m_.embedding, step_.ids[r], hidden);
        if (m_.embedding_scale != 1)
          for (int64_t i = 0; i < m_.hidden; i++) hidden[i] *= m_.embedding_scale;
        for (int kind = 0; kind < 2; kind++) {
          if (!m_.frequencies[kind]) continue;
          float* angles = w_.angles.data() + (kind * rows + r) * m_.rotary_dim;
          for (int64_t i = 0; i < half; i++) {
            const float angle = float(step_.positions[r]) * m_.frequencies[kind][i];
            angles[i] = std::cos(angle) * m_.rope_scale[kind];
            angles[half + i] = std::sin(angle) * m_.rope_scale[kind];
          }
        }
      }
    });
  }

  // Rows of `from`, normed if there is a norm, in the form that `matrix` wants.
  const Rows& take(const Matrix& matrix, const float* from, const float* norm, int64_t rows) {
    const bool converts = matrix.kind == kInt8 || matrix.kind == kInt4;
    if (!norm && !converts) return here(matrix, from);
    float* normed = w_.normed.data();
    const Rows& x = here(matrix, norm ? normed : from);
    team_.share(rows, grain(), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; r++) {
        if (norm) rms_norm(from + r * m_.hidden, norm, m_.hidden, m_.epsilon, normed + r * m_.hidden);
        if (converts) w_.rows.convert(matrix.kind, r);
      }
    });
    return x;
  }

  const Rows& here(const Matrix& matrix, const float* from) {
    // One thread says where the rows are; nobody reads the old place any more, since all met after the last phase.
    team_.share(1, 1, [&](int64_t, int64_t) {
      w_.rows.values = from;
      w_.rows.depth = matrix.depth;
    });
    return w_.rows;
  }

  // Queries, and keys and values into the cache; if it is narrowed, queries and the hidden states of kept rows only.
  void project(const Layer& layer, bool is_narrowed) {
    const int64_t rows = rows_, dim = m_.head_dim, kv = layer.cache.kv_heads, width = layer.qkv.columns;
    float* qkv = w_.qkv.data();
    const Rows& x = take(layer.qkv, hidden_, layer.input_norm, rows);
    multiply(team_, layer.qkv, x, rows, [&](int64_t row, int64_t count, int64_t column, int64_t columns,
                                            const float* values, int64_t ld) {
      for (int64_t r = 0; r < count; r++)
        std::copy(values + r * ld, values + r * ld + columns, qkv + (row + r) * width + column);
    });
    const Tables& tables = step_.tables[layer.table];
    auto turn_query = [&](int64_t r, int64_t to) {
      for (int64_t head = 0; head < m_.heads; head++)
        turn(qkv + r * width + head * dim, layer.query_norm, layer.rope, r, w_.query.data() + (to * m_.heads + head) * dim);
    };
    team_.share(rows, grain(), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; r++) {
        float* row = qkv + r * width;
        if (!is_narrowed) turn_query(r, r);
        for (int64_t head = 0; head < kv; head++) {
          float* key = row + (m_.heads + head) * dim;
          turn(key, layer.key_norm, layer.rope, r, key);
          const int64_t at = (head * layer.cache.slots + tables.slots[r]) * dim;
          keep(layer.cache.keys, layer.cache.is_bfloat16, at, key, dim);
          keep(layer.cache.values, layer.cache.is_bfloat16, at, row + (m_.heads + kv + head) * dim, dim);
        }
      }
    });
    if (!is_narrowed) return;
    team_.share(step_.num_kept, 1, [&](int64_t to, int64_t) {
      turn_query(step_.kept[to], to);
      std::copy_n(w_.hidden.data() + step_.kept[to] * m_.hidden, m_.hidden, w_.kept_hidden.data() + to * m_.hidden);
    });
    rows_ = step_.num_kept;
    hidden_ = w_.kept_hidden.data();
  }

  void attention(const Layer& layer, bool is_narrowed) {
    const Tables& tables = step_.tables[layer.table];
    const Attention call{layer.cache, m_.heads, m_.scale, m_.softcap, layer.window, nullptr};
    attend(team_, call, is_narrowed ? w_.kept_spans.data() : tables.spans, tables.runs,
           is_narrowed ? w_.kept_cuts : w_.cuts[layer.table], w_.query.data(), w_.outs, w_.lses, w_.attended.data());
    add(layer.output, w_.attended.data(), layer.after_attention);
  }

  void feed_forward(const Layer& layer) {
    const Rows& x = take(layer.gate, hidden_, layer.mlp_norm, rows_);
    multiply_gated(team_, layer, x, rows_, m_.activation, w_.gated.data());
    add(layer.down, w_.gated.data(), layer.after_mlp);
  }

  // hidden += matrix(from), normed if there is a norm
  void add(const Matrix& matrix, const float* from, const float* norm) {
    const int64_t rows = rows_, size = m_.hidden;
    const Rows& x = take(matrix, from, nullptr, rows);
    float* hidden = hidden_;
    float* added = w_.added.data();
    multiply(team_, matrix, x, rows, [&](int64_t row, int64_t count, int64_t column, int64_t columns, const float* values,
                                         int64_t ld) {
      for (int64_t r = 0; r < count; r++) {
        const float* value = values + r * ld;
        float* to = (norm ? added : hidden) + (row + r) * size + column;
        for (int64_t n = 0; n < columns; n++) to[n] = norm ? value[n] : to[n] + value[n];
      }
    });
    if (!norm) return;
    team_.share(rows, grain(), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; r++) {
        rms_norm(added + r * size, norm, size, m_.epsilon, added + r * size);
        for (int64_t n = 0; n < size; n++) hidden[r * size + n] += added[r * size + n];
      }
    });
  }

  void logits() {
    float* kept = w_.added.data();  // rows of it suffice: no more are kept than there are
    team_.share(step_.num_kept, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; r++) {
        const float* from = hidden_ + r * m_.hidden;  // no others are left
        rms_norm(from, m_.final_norm, m_.hidden, m_.epsilon, kept + r * m_.hidden);
      }
    });
    const Rows& x = take(m_.head, kept, nullptr, step_.num_kept);
    multiply(team_, m_.head, x, step_.num_kept, [&](int64_t row, int64_t count, int64_t column, int64_t columns,
                                                    const float* values, int64_t ld) {
      for (int64_t r = 0; r < count; r++) {
        float* to = step_.logits + (row + r) * m_.head.columns + column;
        for (int64_t n = 0; n < columns; n++) to[n] = values[r * ld + n];
        if (m_.final_softcap != 0)
          for (int64_t n = 0; n < columns; n++) to[n] = std::tanh(to[n] / m_.final_softcap) * m_.final_softcap;
      }
    });
  }

  // Norm and rotation of one head's vector.
  void turn(const float* from, const float* norm, int32_t rope, int64_t row, float* to) {
    const int64_t dim = m_.head_dim, half = m_.rotary_dim / 2;
    if (norm) {
      rms_norm(from, norm, dim, m_.epsilon, to);
      from = to;
    }
    const float* cosine = w_.angles.data() + (rope * step_.rows + row) * m_.rotary_dim;
    const float* sine = cosine + half;
    for (int64_t i = 0; i < half; i++) {
      const float a = from[i], b = from[half + i];
      to[i] = a * cosine[i] - b * sine[i];
      to[half + i] = b * cosine[i] + a * sine[i];
    }
    for (int64_t i = 2 * half; i < dim; i++) to[i] = from[i];
  }

  static void keep(void* cache, int32_t is_bfloat16, int64_t at, const float* from, int64_t dim) {
    if (is_bfloat16)
      for (int64_t i = 0; i < dim; i += kLanes) store_floats((bfloat*)cache + at + i, load_floats(from + i));
    else
      std::copy(from, from + dim, (float*)cache + at);
  }

  Team& team_;
  const Model& m_;
  const Step& step_;
  Workspace& w_;
  int64_t rows_;    // each thread keeps count by itself
  float* hidden_;
};

}  // namespace plexus
