// What the library offers, with C's own calling convention, so that it is built without torch's or Python's headers and
// loaded with ctypes. Structures are mirrored in worker/engine/native/library.py. Nothing here checks its arguments.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "decoder.h"
#include "packing.h"

using namespace plexus;

namespace {

template <class T>
void widen_all(const void* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i++) to[i] = to_float(((const T*)from)[i]);
}

struct Linear {  // buffers of a product that is called on its own
  std::vector<float> in;
  Rows rows;
};

struct Alone {  // the same for attention
  std::vector<float> query, out, outs, lses;
  Cuts cuts;
};

}  // namespace

extern "C" {

int32_t plexus_lanes() { return kLanes; }

int64_t plexus_layout(int32_t which) {  // sizes of the structures, to compare with Python's
  const int64_t sizes[] = {sizeof(Matrix), sizeof(Cache), sizeof(Layer), sizeof(Model), sizeof(Step), sizeof(Span)};
  return sizes[which];
}

int64_t plexus_packed_bytes(const Matrix* matrix) { return matrix->panels() * matrix->panel_bytes(); }

int64_t plexus_padded_columns(const Matrix* matrix) { return matrix->panels() * matrix->panel(); }

// The rows of all parts, bfloat16 or float32, become `matrix`, whose memory is there.
void plexus_pack(const Matrix* matrix, const Part* parts, int32_t is_bfloat16, int32_t threads) {
  is_bfloat16 ? pack<bfloat>(*matrix, parts, threads) : pack<float>(*matrix, parts, threads);
}

void plexus_unpack_rows(const Matrix* matrix, const int64_t* rows, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i++) unpack_row(*matrix, rows[i], to + i * matrix->depth);
}

// out [rows, columns] = x [rows, depth] times the matrix; both bfloat16 or both float32
void plexus_linear(const Matrix* matrix, const void* x, int64_t rows, int32_t is_bfloat16, void* out, int32_t threads) {
  if (!rows) return;
  thread_local Linear own;
  Linear& l = own;
  const int64_t depth = matrix->depth;
  if (is_bfloat16 && int64_t(l.in.size()) < rows * depth) l.in.resize(rows * depth);
  l.rows.reserve(matrix->kind, is_bfloat16 ? l.in.data() : (const float*)x, rows, depth);
  run(threads, [&](Team& team) {
    team.share(rows, 1 + rows / (4 * team.size()), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; r++) {
        if (is_bfloat16) widen_all<bfloat>((const bfloat*)x + r * depth, depth, l.in.data() + r * depth);
        l.rows.convert(matrix->kind, r);
      }
    });
    multiply(team, *matrix, l.rows, rows, [&](int64_t row, int64_t count, int64_t column, int64_t columns,
                                              const float* values, int64_t ld) {
      for (int64_t r = 0; r < count; r++) {
        const float* from = values + r * ld;
        const int64_t at = (row + r) * matrix->columns + column;
        if (is_bfloat16)
          for (int64_t n = 0; n < columns; n++) ((bfloat*)out)[at + n] = narrow(from[n]);
        else
          std::copy(from, from + columns, (float*)out + at);
      }
    });
  });
}

// out = rms_norm(x) * weight, [rows, size]; x and out both bfloat16 or both float32
void plexus_rms_norm(const void* x, const float* weight, int64_t rows, int64_t size, float epsilon, int32_t is_bfloat16,
                     void* out) {
  thread_local std::vector<float> held;
  held.resize(std::max<size_t>(held.size(), size));
  for (int64_t r = 0; r < rows; r++) {
    if (!is_bfloat16) {
      rms_norm((const float*)x + r * size, weight, size, epsilon, (float*)out + r * size);
      continue;
    }
    widen_all<bfloat>((const bfloat*)x + r * size, size, held.data());
    rms_norm(held.data(), weight, size, epsilon, held.data());
    for (int64_t i = 0; i < size; i++) ((bfloat*)out)[r * size + i] = narrow(held[i]);
  }
}

// query [rows, heads, key_dim] and out [rows, heads, value_dim], of the cache's type
void plexus_attention(const Attention* attention, const Span* spans, int64_t num_spans, const Run* runs, int64_t rows,
                      const void* query, void* out, int32_t threads) {
  if (!rows) return;
  thread_local Alone own;
  Alone& l = own;
  const Attention& a = *attention;
  const bool is_bfloat16 = a.cache.is_bfloat16;
  const int64_t in_size = a.heads * a.cache.key_dim, out_size = a.heads * a.cache.value_dim;
  auto room = [](std::vector<float>& held, int64_t size) {
    if (int64_t(held.size()) < size) held.resize(size);
  };
  l.cuts.make(spans, num_spans, a.heads, a.cache.kv_heads, a.window, threads);
  room(l.outs, l.cuts.partial_rows * a.cache.value_dim);
  room(l.lses, l.cuts.partial_rows);
  if (is_bfloat16) {
    room(l.query, rows * in_size);
    room(l.out, rows * out_size);
  }
  const float* q = is_bfloat16 ? l.query.data() : (const float*)query;
  float* o = is_bfloat16 ? l.out.data() : (float*)out;
  run(threads, [&](Team& team) {
    const int64_t grain = 1 + rows / (4 * team.size());
    if (is_bfloat16)
      team.share(rows, grain, [&](int64_t first, int64_t last) {
        widen_all<bfloat>((const bfloat*)query + first * in_size, (last - first) * in_size, l.query.data() + first * in_size);
      });
    attend(team, a, spans, runs, l.cuts, q, l.outs, l.lses, o);
    if (is_bfloat16)
      team.share(rows, grain, [&](int64_t first, int64_t last) {
        for (int64_t i = first * out_size; i < last * out_size; i++) ((bfloat*)out)[i] = narrow(l.out[i]);
      });
  });
}

void* plexus_workspace() { return new Workspace; }

void plexus_free_workspace(void* workspace) { delete (Workspace*)workspace; }

void plexus_forward(const Model* model, const Step* step, void* workspace, int32_t threads) {
  if (!step->rows) return;
  Workspace& space = *(Workspace*)workspace;
  Forward::prepare(*model, *step, space, threads);
  run(threads, [&](Team& team) { Forward(team, *model, *step, space).run(); });
}

}  // extern "C"
