// From logits to a token, as serving/engine/sampler.py does it: the same filters in the same order, one number per draw.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

extern "C" {

// temperature 0: the most likely token. top_k 0: all. uniform: the draw's random number, in [0, 1).
struct Draw {
  double uniform;
  float temperature, top_p, min_p;
  int32_t top_k;
};

}  // extern "C"

constexpr int32_t kNotFinite = -1;

// The first token with the highest logit; kNotFinite if that is infinite or any logit is not a number.
inline int32_t most_likely(const float* logits, int n) {
  constexpr int kRun = 512;
  float top = -INFINITY;
  int start = 0;  // of the run of tokens that holds it
  ints is_nan = {};
  for (int from = 0; from < n; from += kRun) {
    floats highest = all(-INFINITY);
    for (int i = from; i < std::min(n, from + kRun); i += 16) {
      const floats v = load<floats>(logits + i);
      is_nan |= v != v;
      highest = larger(v, highest);
    }
    if (const float found = maximum(highest); found > top) {
      top = found;
      start = from;
    }
  }
  if (sum(is_nan ? all(1) : all(0)) > 0 || !std::isfinite(top)) return kNotFinite;
  return std::find(logits + start, logits + n, top) - logits;
}

// A beginning of the ranking of tokens by weight, the heaviest first and of equally heavy ones the first: every token heavier
// than `weight`, and those as heavy up to the token `last`. It weighs `mass`.
struct Cut {
  float weight;
  int32_t last;
  double mass;

  bool is_shorter_than(const Cut& other) const {
    return weight > other.weight || (weight == other.weight && last < other.last);
  }

  floats kept(floats weights, int first_token) const {
    const ints is_kept = (weights > weight) | ((weights == weight) & (kLanes + first_token <= last));
    return is_kept ? weights : floats{};
  }
};

// Weights relative to the heaviest token's, in buckets: the upper half of a positive float's bits ranks as the float does.
class Ranking {
 public:
  void fill(const float* logits, int n, float top, float temperature) {
    weights.resize(n);
    counts_.assign(kBuckets, 0);
    masses_.assign(kBuckets, 0);
    total = 0;
    for (int i = 0; i < n; i += 16) {
      const floats w = exponential((load<floats>(logits + i) - top) / temperature);
      store(&weights[i], w);
      total += sum(w);
    }
  }

  // To be called once after `fill`, before `cut`.
  void count() {
    for (const float w : weights) {
      ++counts_[bucket(w)];
      masses_[bucket(w)] += w;
    }
  }

  // The shortest beginning that holds n tokens or weighs `mass`; all tokens if none does.
  Cut cut(int64_t n, double mass) const {
    Cut found{0.0f, INT32_MAX, 0};
    int i = kBuckets - 1;
    for (; i > 0 && counts_[i] < n && found.mass + masses_[i] < mass; --i) {
      n -= counts_[i];
      found.mass += masses_[i];
    }
    std::vector<int32_t> last;  // the bucket in which it ends
    for (size_t token = 0; token < weights.size(); ++token)
      if (bucket(weights[token]) == i) last.push_back(token);
    std::stable_sort(last.begin(), last.end(), [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
    for (const int32_t token : last) {
      found = {weights[token], token, found.mass + weights[token]};
      if (--n <= 0 || found.mass >= mass) break;
    }
    return found;
  }

  // The tokens that weigh `weight` or more.
  Cut above(float weight) const {
    Cut found{weight, INT32_MAX, 0};
    for (size_t i = 0; i < weights.size(); i += 16) found.mass += sum(found.kept(load<floats>(&weights[i]), i));
    return found;
  }

  std::vector<float> weights;
  double total = 0;

 private:
  static constexpr int kBuckets = 0x3f81;  // weights are at most 1

  static int bucket(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return bits >> 16;
  }

  std::vector<uint32_t> counts_;
  std::vector<double> masses_;
};

// What min-p and top-k keep, then top-p of what these left.
inline Cut filtered(const Ranking& ranking, const Draw& how) {
  Cut found{0.0f, INT32_MAX, ranking.total};
  if (how.min_p > 0) found = ranking.above(how.min_p);
  if (how.top_k > 0)
    if (const Cut first = ranking.cut(how.top_k, INFINITY); first.is_shorter_than(found)) found = first;
  if (how.top_p < 1)
    if (const Cut nucleus = ranking.cut(INT64_MAX, how.top_p * found.mass); nucleus.is_shorter_than(found)) found = nucleus;
  return found;
}

// Inverse of the cumulative distribution over the tokens that are kept, in their own order.
inline int32_t pick(const std::vector<float>& weights, const Cut& cut, double uniform) {
  thread_local std::vector<float> kept;
  kept.resize(weights.size());
  double total = 0, so_far = 0;
  for (size_t i = 0; i < weights.size(); i += 16) {
    const floats w = cut.kept(load<floats>(&weights[i]), i);
    store(&kept[i], w);
    total += sum(w);
  }
  int32_t last = 0;
  for (size_t i = 0; i < weights.size(); i += 16) {
    const float block = sum(load<floats>(&kept[i]));
    if (block == 0) continue;
    const bool is_here = so_far + block > uniform * total;
    for (int j = 0; j < 16; ++j)
      if (kept[i + j] > 0) {
        last = i + j;
        if (is_here && (so_far += kept[last]) > uniform * total) return last;
      }
    if (!is_here) so_far += block;
  }
  return last;
}

inline int32_t draw(const float* logits, int n, const Draw& how) {
  const int32_t greedy = most_likely(logits, n);
  if (greedy == kNotFinite || how.temperature == 0) return greedy;
  thread_local Ranking ranking;
  ranking.fill(logits, n, logits[greedy], how.temperature);
  if (how.top_k > 0 || how.top_p < 1) ranking.count();
  return pick(ranking.weights, filtered(ranking, how), how.uniform);
}
