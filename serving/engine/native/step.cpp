// One step of the engine on a CPU: the forward pass of the Llama family over rows of many sequences.
//
// A row is a token. Its numbers come from its own sequence only, by the same operations in the same order, whatever else
// is in the batch, however a prompt is cut into blocks, and whichever thread computes it: so a text does not depend on
// its company. Weights and the inputs of products are bfloat16, everything between is float32.
//
// A product's weights lie in panels of 32 outputs: (n_out / 32, n_in / 2, 32, 2), so that one load gives a pair of inputs'
// weights for 16 outputs. serving/engine/native/__init__.py packs them and calls in.

#include <algorithm>
#include <cmath>

#include "draw.h"
#include "pool.h"
#include "rank.h"
#include "vectors.h"

extern "C" {

struct Shape {
  int32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, intermediate, vocabulary;
  float norm_eps;
};

struct Linear {
  const bf16* weight;  // panels
  const bf16* bias;    // (n_out,) or null
};

struct Layer {
  const bf16* input_norm;
  Linear qkv;
  Linear out;
  const bf16* post_norm;
  Linear gate_up;  // in each panel 16 outputs of gate, then the 16 of up that they are multiplied with
  Linear down;
};

struct Weights {
  const bf16* embedding;  // (V, H)
  const Layer* layers;
  const bf16* final_norm;
  Linear head;
};

// Consecutive tokens of one sequence. store: (L, 2·Hkv, capacity, D), keys first.
struct Segment {
  bf16* store;
  int64_t capacity;
  int32_t start, n_tokens;
};

}  // extern "C"

namespace {

constexpr int kPanel = 32;    // outputs of a panel
#ifdef __AVX512F__
constexpr int kMaxTile = 12;  // rows that a tile holds: 12 × 2 sums, 2 weights and an input are 27 of 32 registers
#else
constexpr int kMaxTile = 2;
#endif

// sums[r][c] = Σ_k x[r][k] · w[16·c … 16·c+15][k], pair after pair of k.
// Inlined into a function of its own for each R: left to itself GCC kept some tiles' sums in memory, other ones whenever this
// file changed (twice the time at 8 rows after a change elsewhere, 1.4 times at 5 and 6 before it).
template <int R>
[[gnu::always_inline]] inline void tile(const bf16* x, int n_in, const bf16* panel, floats sums[R][2]) {
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = floats{};
  const auto* pairs = reinterpret_cast<const uint32_t*>(x);
  for (int k = 0; k < n_in / 2; ++k, panel += 2 * kPanel) {
    const words low = load<words>(panel), high = load<words>(panel + kPanel);
    for (int r = 0; r < R; ++r) {
      const words pair = words{} + pairs[r * (n_in / 2) + k];
      sums[r][0] = add_pairs(sums[r][0], low, pair);
      sums[r][1] = add_pairs(sums[r][1], high, pair);
    }
  }
}

// A tile of `n` ≤ R rows, in registers.
template <int R, class Keep>
[[gnu::noinline]] void multiply_tile(int n, const bf16* x, int row, int n_in, const bf16* panel, const Keep& keep) {
  if constexpr (R > 1)
    if (n < R) return multiply_tile<R - 1>(n, x, row, n_in, panel, keep);
  floats sums[R][2];
  tile<R>(x + int64_t(row) * n_in, n_in, panel, sums);
  for (int r = 0; r < R; ++r) keep(row + r, sums[r][0], sums[r][1]);
}

// One panel's outputs for all rows, in tiles of nearly equal size; keep(row, outputs 0…15, outputs 16…31).
template <class Keep>
void multiply_panel(const bf16* x, int n_rows, int n_in, const bf16* panel, const Keep& keep) {
  for (int row = 0, n_tiles = (n_rows + kMaxTile - 1) / kMaxTile; n_tiles > 0; --n_tiles) {
    const int n = (n_rows - row + n_tiles - 1) / n_tiles;
    multiply_tile<kMaxTile>(n, x, row, n_in, panel, keep);
    row += n;
  }
}

// y = x / rms(x) · weight
template <class Store>
void normalise(const float* x, const bf16* weight, int n, float eps, const Store& store) {
  floats squares = {};
  for (int i = 0; i < n; i += 16) {
    const floats v = load<floats>(x + i);
    squares += v * v;
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / n + eps);
  for (int i = 0; i < n; i += 16) store(i, load<floats>(x + i) * scale * from_bf16(weight + i));
}

// Rotates one head's pairs (i, i + D/2). cos, sin: (D/2,).
void rotate(const float* x, const float* cos, const float* sin, int dim, float scale, bf16* y) {
  const int half = dim / 2;
  for (int i = 0; i < half; i += 16) {
    const floats a = load<floats>(x + i), b = load<floats>(x + half + i);
    const floats c = load<floats>(cos + i) * scale, s = load<floats>(sin + i) * scale;
    to_bf16(y + i, a * c - b * s);
    to_bf16(y + half + i, b * c + a * s);
  }
}

// Attention of kHeads queries (kHeads, D) to the same n keys and values (n, D), D = 32·kChunks: softmax(q·k) v -> (kHeads, D).
// scores, probs: room for n rounded up to 16, times kHeads.
template <int kChunks, int kHeads>
void attend(const bf16* q, const bf16* keys, const bf16* values, int n, float* scores, bf16* probs, bf16* out) {
  constexpr int kDim = 32 * kChunks;
  const int room = (n + 15) / 16 * 16;
  float shares[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    words own[kChunks];
    for (int c = 0; c < kChunks; ++c) own[c] = load<words>(q + h * kDim + 32 * c);
    floats highest = all(-INFINITY), total = {};
    for (int t = 0; t < n; t += 16) {
      floats products[16];
      for (int i = 0; i < 16; ++i) {
        const bf16* key = keys + int64_t(std::min(t + i, n - 1)) * kDim;
        products[i] = floats{};
        for (int c = 0; c < kChunks; ++c) products[i] = add_pairs(products[i], own[c], load<words>(key + 32 * c));
      }
      const floats found = first(n - t, sums(products), -INFINITY);
      highest = larger(highest, found);
      store(scores + t, found);
    }
    const float top = maximum(highest);
    for (int t = 0; t < n; t += 16) {
      const floats p = exponential(load<floats>(scores + t) - top);  // 0 in the lanes beyond n
      total += p;
      to_bf16(probs + h * room + t, p);
    }
    shares[h] = 1.0f / sum(total);
  }
  // Two tokens at a time: a pair is one dimension's value of both. Even dimensions lie in the lower halves of words.
  floats even[kHeads][kChunks] = {}, odd[kHeads][kChunks] = {};
  for (int t = 0; t < n; t += 2)
    for (int c = 0; c < kChunks; ++c) {
      const words a = load<words>(values + int64_t(t) * kDim + 32 * c);
      const words b = load<words>(values + int64_t(std::min(t + 1, n - 1)) * kDim + 32 * c);
      const words evens = (a & 0xffff) | (b << 16), odds = (a >> 16) | (b & 0xffff0000);
      for (int h = 0; h < kHeads; ++h) {
        uint32_t pair;
        std::memcpy(&pair, probs + h * room + t, sizeof pair);
        even[h][c] = add_pairs(even[h][c], evens, words{} + pair);
        odd[h][c] = add_pairs(odd[h][c], odds, words{} + pair);
      }
    }
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kChunks; ++c) {
      bf16 low[16], high[16];
      to_bf16(low, even[h][c] * shares[h]);
      to_bf16(high, odd[h][c] * shares[h]);
      const auto wide = [](const bf16* half) { return __builtin_convertvector(load<halves>(half), words); };
      store(out + h * kDim + 32 * c, wide(low) | wide(high) << 16);
    }
}

// As many heads at once as sums fit into registers, then those left over.
template <int kChunks, int kHeads = std::max(1, 8 / kChunks)>
void attend_all(const bf16* q, const bf16* keys, const bf16* values, int n, int n_heads, float* scores, bf16* probs, bf16* out) {
  constexpr int kDim = 32 * kChunks;
  for (; n_heads >= kHeads; n_heads -= kHeads, q += kHeads * kDim, out += kHeads * kDim)
    attend<kChunks, kHeads>(q, keys, values, n, scores, probs, out);
  if constexpr (kHeads > 1)
    if (n_heads > 0) attend_all<kChunks, kHeads - 1>(q, keys, values, n, n_heads, scores, probs, out);
}

using Attend = void (*)(const bf16*, const bf16*, const bf16*, int, int, float*, bf16*, bf16*);

Attend attend_for(int dim) {
  switch (dim) {
    case 32: return attend_all<1>;
    case 64: return attend_all<2>;
    case 96: return attend_all<3>;
    case 128: return attend_all<4>;
    case 160: return attend_all<5>;
    case 192: return attend_all<6>;
    case 224: return attend_all<7>;
    case 256: return attend_all<8>;
    default: return nullptr;
  }
}

}  // namespace

// The buffers and threads of an engine, for one model's shape.
struct Runner {
  Runner(const Shape& shape, int n_threads, int context, const float* cos, const float* sin)
      : shape(shape), context(context), cos(cos), sin(sin), pool(n_threads), attend(attend_for(shape.head_dim)) {}

  const Shape shape;
  const int context;
  const float *cos, *sin;  // (context, D/2)
  Pool pool;
  const Attend attend;

  struct Row {
    const Segment* segment;
    int position;
  };
  std::vector<Row> rows;
  std::vector<float> x, qkv;                   // (N, H) the residual stream; (N, (Hq + 2·Hkv)·D)
  std::vector<bf16> y, q, attended, products;  // inputs of the four products

  int n_qkv() const { return (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim; }

  void prepare(const Segment* segments, int n_segments) {
    rows.clear();
    for (int s = 0; s < n_segments; ++s)
      for (int i = 0; i < segments[s].n_tokens; ++i) rows.push_back({segments + s, segments[s].start + i});
    const size_t n = rows.size();
    x.resize(n * shape.hidden);
    y.resize(n * shape.hidden);
    qkv.resize(n * n_qkv());
    q.resize(n * shape.n_heads * shape.head_dim);
    attended.resize(q.size());
    products.resize(n * shape.intermediate);
  }

  // Each thread takes two long runs of panels: memory is read fastest in a row, and one that has lost its core holds up half
  // of its share only.
  template <class Keep>
  void multiply(const bf16* input, int n_rows, int n_in, int n_out, const Linear& linear, const Keep& keep) {
    const int n_panels = n_out / kPanel;
    const int n_tasks = std::min(n_panels, 2 * pool.n_threads());
    pool.run(n_tasks, [&](int task) {
      for (int p = n_panels * task / n_tasks; p < n_panels * (task + 1) / n_tasks; ++p) {
        const bf16* panel = linear.weight + int64_t(p) * n_in * kPanel;
        multiply_panel(input, n_rows, n_in, panel, [&](int row, floats a, floats b) {
          if (linear.bias) {
            a += from_bf16(linear.bias + p * kPanel);
            b += from_bf16(linear.bias + p * kPanel + 16);
          }
          keep(row, p, a, b);
        });
      }
    });
  }

  template <class Keep>
  void normalise_row(int r, const bf16* weight, const Keep& keep) {
    normalise(&x[int64_t(r) * shape.hidden], weight, shape.hidden, shape.norm_eps, keep);
  }

  void normalise_rows(const bf16* weight) {
    const int n = rows.size(), length = std::max(1, n / (4 * pool.n_threads()));
    pool.run((n + length - 1) / length, [&](int task) {
      for (int r = task * length; r < std::min(n, (task + 1) * length); ++r)
        normalise_row(r, weight, [&](int i, floats v) { to_bf16(&y[int64_t(r) * shape.hidden + i], v); });
    });
  }

  // x += input · Wᵀ
  void add_product(const std::vector<bf16>& input, int n_in, const Linear& linear) {
    multiply(input.data(), rows.size(), n_in, shape.hidden, linear, [&](int row, int p, floats a, floats b) {
      float* to = &x[int64_t(row) * shape.hidden + p * kPanel];
      store(to, load<floats>(to) + a);
      store(to + 16, load<floats>(to + 16) + b);
    });
  }

  bf16* keys_of(const Row& row, int layer, int head) const {
    return row.segment->store + (int64_t(layer) * 2 * shape.n_kv_heads + head) * row.segment->capacity * shape.head_dim;
  }

  // Rotates a row's queries and keys; keys and values go into its sequence's store.
  void place(int r, int layer) {
    const int dim = shape.head_dim;
    const float* from = &qkv[int64_t(r) * n_qkv()];
    const float *c = cos + int64_t(rows[r].position) * dim / 2, *s = sin + int64_t(rows[r].position) * dim / 2;
    const float scale = 1.0f / std::sqrt(float(dim));
    for (int h = 0; h < shape.n_heads; ++h) rotate(from + h * dim, c, s, dim, scale, &q[(int64_t(r) * shape.n_heads + h) * dim]);
    from += shape.n_heads * dim;
    for (int h = 0; h < 2 * shape.n_kv_heads; ++h) {
      bf16* to = keys_of(rows[r], layer, h) + int64_t(rows[r].position) * dim;
      if (h < shape.n_kv_heads) rotate(from + h * dim, c, s, dim, 1.0f, to);
      else for (int i = 0; i < dim; i += 16) to_bf16(to + i, load<floats>(from + h * dim + i));
    }
  }

  void attend_row(int r, int kv_head, int layer) {
    const int dim = shape.head_dim, n_groups = shape.n_heads / shape.n_kv_heads;
    const int n = rows[r].position + 1, room = (n + 15) / 16 * 16;
    thread_local std::vector<float> scores;
    thread_local std::vector<bf16> probs;
    scores.resize(room);
    probs.resize(room * n_groups);
    const bf16 *keys = keys_of(rows[r], layer, kv_head), *values = keys_of(rows[r], layer, kv_head + shape.n_kv_heads);
    const int64_t at = (int64_t(r) * shape.n_heads + kv_head * n_groups) * dim;
    attend(&q[at], keys, values, n, n_groups, scores.data(), probs.data(), &attended[at]);
  }

  void run_layer(const Layer& layer, int i) {
    const int n_rows = rows.size(), n_out = n_qkv();
    normalise_rows(layer.input_norm);
    multiply(y.data(), n_rows, shape.hidden, n_out, layer.qkv, [&](int row, int p, floats a, floats b) {
      float* to = &qkv[int64_t(row) * n_out + p * kPanel];
      store(to, a);
      store(to + 16, b);
    });
    // A prompt's row reads the keys of the rows before it, so all are placed before any attends.
    const int length = std::max(1, n_rows / (4 * pool.n_threads()));
    pool.run((n_rows + length - 1) / length, [&](int task) {
      for (int r = task * length; r < std::min(n_rows, (task + 1) * length); ++r) place(r, i);
    });
    pool.run(n_rows * shape.n_kv_heads, [&](int task) { attend_row(task / shape.n_kv_heads, task % shape.n_kv_heads, i); });
    add_product(attended, shape.n_heads * shape.head_dim, layer.out);
    normalise_rows(layer.post_norm);
    multiply(y.data(), n_rows, shape.hidden, 2 * shape.intermediate, layer.gate_up, [&](int row, int p, floats gate, floats up) {
      to_bf16(&products[int64_t(row) * shape.intermediate + p * kPanel / 2], silu(gate) * up);
    });
    add_product(products, shape.intermediate, layer.down);
  }

  void hidden(const Weights& weights, const int32_t* ids, float* out) {
    const int n_rows = rows.size();
    for (int r = 0; r < n_rows; ++r)
      for (int i = 0; i < shape.hidden; i += 16)
        store(&x[int64_t(r) * shape.hidden + i], from_bf16(weights.embedding + int64_t(ids[r]) * shape.hidden + i));
    for (int i = 0; i < shape.n_layers; ++i) run_layer(weights.layers[i], i);
    for (int r = 0; r < n_rows; ++r)
      normalise_row(r, weights.final_norm, [&](int i, floats v) { store(out + int64_t(r) * shape.hidden + i, v); });
  }

  void logits(const Weights& weights, const float* hidden, int n_rows, float* out) {
    y.resize(int64_t(n_rows) * shape.hidden);
    for (int64_t i = 0; i < int64_t(y.size()); i += 16) to_bf16(&y[i], load<floats>(hidden + i));
    multiply(y.data(), n_rows, shape.hidden, shape.vocabulary, weights.head, [&](int row, int p, floats a, floats b) {
      float* to = out + int64_t(row) * shape.vocabulary + p * kPanel;
      store(to, a);
      store(to + 16, b);
    });
  }
};

extern "C" {

// cos, sin: (context, D/2), which the caller keeps alive.
Runner* runner_new(const Shape* shape, int n_threads, int context, const float* cos, const float* sin) {
  return new Runner(*shape, n_threads, context, cos, sin);
}

void runner_free(Runner* runner) { delete runner; }

// ids: of all segments' tokens in order; out: (N, H), final and normalised. Writes keys and values to the stores.
void runner_hidden(Runner* runner, const Weights* weights, const Segment* segments, int n_segments, const int32_t* ids, float* out) {
  runner->prepare(segments, n_segments);
  runner->hidden(*weights, ids, out);
}

// logits: (R, V) -> tokens: (R,), kNotFinite where a row holds no distribution.
void runner_draw(Runner* runner, const float* logits, const Draw* how, int n_rows, int32_t* tokens) {
  const int n = runner->shape.vocabulary;
  runner->pool.run(n_rows, [&](int row) { tokens[row] = draw(logits + int64_t(row) * n, n, how[row]); });
}

// logits: (R, V), tokens: (R,) -> logprobs, ranks: (R,) of these; top_tokens, top_logprobs: (R, n_top). See rank.h.
void runner_rank(Runner* runner, const float* logits, const int32_t* tokens, int n_rows, int n_top, float* logprobs, int32_t* ranks,
                 int32_t* top_tokens, float* top_logprobs) {
  const int n = runner->shape.vocabulary;
  runner->pool.run(n_rows, [&](int r) {
    const int64_t at = int64_t(r) * n_top;
    rank(logits + int64_t(r) * n, n, tokens[r], n_top, logprobs + r, ranks + r, top_tokens + at, top_logprobs + at);
  });
}

// hidden: (R, H) -> out: (R, V).
void runner_logits(Runner* runner, const Weights* weights, const float* hidden, int n_rows, float* out) {
  runner->logits(*weights, hidden, n_rows, out);
}

}  // extern "C"
