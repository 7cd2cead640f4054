// How likely a row of logits makes a token, and its likeliest ones, as serving/engine/sampler.py's `token_logprob` has them.
#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.h"

// Logarithm of Σ exp(logits), of which `top` is the largest.
inline float log_sum(const float* logits, int n, float top) {
  constexpr int kRun = 512;  // added up in float32; the runs in double
  double total = 0;
  for (int from = 0; from < n; from += kRun) {
    floats part = {};
    for (int i = from; i < std::min(n, from + kRun); i += 16) part += exponential(load<floats>(logits + i) - top);
    total += sum(part);
  }
  return top + float(std::log(total));
}

// The n_top tokens with the largest logits, the largest first and of equal ones the first.
inline void likeliest(const float* logits, int n, int n_top, int32_t* tokens) {
  int n_found = 0;
  float least = -INFINITY;  // of those found, once there are enough
  const auto place = [&](int token) {
    int at = n_found < n_top ? n_found++ : n_top - 1;
    for (; at > 0 && logits[tokens[at - 1]] < logits[token]; --at) tokens[at] = tokens[at - 1];
    tokens[at] = token;
    if (n_found == n_top) least = logits[tokens[n_top - 1]];
  };
  for (int i = 0; i < n; i += 16) {
    const floats v = load<floats>(logits + i);
    if (n_found == n_top && maximum(v) <= least) continue;
    for (int j = i; j < i + 16; ++j)
      if (n_found < n_top || logits[j] > least) place(j);
  }
}

// The token's log-probability, which is no number where a logit is none, and how many tokens are strictly more likely, plus 1;
// then the n_top likeliest tokens and their log-probabilities.
inline void rank(const float* logits, int n, int32_t token, int n_top, float* logprob, int32_t* rank, int32_t* tokens, float* logprobs) {
  floats highest = all(-INFINITY);
  ints n_above = {};
  const float own = logits[token];
  for (int i = 0; i < n; i += 16) {
    const floats v = load<floats>(logits + i);
    highest = larger(highest, v);
    n_above -= v > own;
  }
  const float total = log_sum(logits, n, maximum(highest));
  *logprob = own - total;
  *rank = 1;
  for (int lane = 0; lane < 16; ++lane) *rank += n_above[lane];
  if (n_top > 0) likeliest(logits, n, n_top, tokens);
  for (int i = 0; i < n_top; ++i) logprobs[i] = logits[tokens[i]] - total;
}
