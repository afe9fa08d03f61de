// The rows of a Glauber step: where each is, what it was given, and what is decided of it. Internal to each
// instruction set.
#pragma once

#include "cpu/cut.h"
#include "cpu/row_race.h"

namespace ggm::cpu::GGM_ISA {
namespace {

GGM_HD float not_a_number() { return float_of(0x7FC00000u); }

// Where the token of row b * count + k stands, and its coordinates.
struct Place {
  int64_t sequence, k, position, token_at;
  Race race;
};

template <class T>
GGM_HD T value_of(const RowValues<T>& given, const Place& place, T otherwise) {
  if (given.values == nullptr) return otherwise;
  return given.values[place.sequence * given.sequence_stride + place.k * given.stride];
}

GGM_HD Place place_of(const GlauberArgs& args, int64_t row) {
  Place place;
  place.sequence = row / args.count;
  place.k = row % args.count;
  place.position = args.positions[place.sequence * args.position_row_stride + place.k];
  place.token_at = place.sequence * args.token_row_stride + place.position * args.token_stride;
  place.race.sample_id =
      static_cast<uint64_t>(args.sample_ids == nullptr ? place.sequence : args.sample_ids[place.sequence]);
  place.race.position = static_cast<uint32_t>(place.position);
  place.race.step = static_cast<uint32_t>(value_of(args.options.step, place, args.step));
  return place;
}

GGM_HD uint64_t seed_of(const GlauberArgs& args, const Place& place) {
  return static_cast<uint64_t>(value_of(args.options.seed, place, static_cast<int64_t>(args.seed)));
}

GGM_HD int64_t token_at(const GlauberArgs& args, int64_t at) {
  return args.token_bytes == 8 ? static_cast<const int64_t*>(args.tokens)[at]
                               : static_cast<const int32_t*>(args.tokens)[at];
}

GGM_HD void write_token(const GlauberArgs& args, int64_t at, int64_t token) {
  if (args.token_bytes == 8) {
    static_cast<int64_t*>(args.tokens)[at] = token;
  } else {
    static_cast<int32_t*>(args.tokens)[at] = static_cast<int32_t>(token);
  }
}

// A row without a position, or whose position is frozen: nothing is done for it.
GGM_HD bool is_idle(const GlauberArgs& args, const Place& place) {
  return place.position < 0 ||
         (args.frozen != nullptr && args.frozen[place.sequence * args.length + place.position] != 0);
}

GGM_HD bool reads_present(const GlauberArgs& args) {
  return args.noise_rate != nullptr || args.options.logit_shift.values != nullptr;
}

GGM_HD bool mixes(const GlauberArgs& args) { return args.options.mixture.values != nullptr; }

GGM_HD float log_noise_prob(const GlauberArgs& args, int64_t token) {
  return args.noise_log_probs == nullptr ? -logf(static_cast<float>(args.vocab_size)) : args.noise_log_probs[token];
}

GGM_HD Law law_of(const GlauberArgs& args, const Place& place) {
  const float temperature = value_of(args.options.temperature, place, args.temperature);
  return {inverse_of(temperature), minus_infinity(), false, temperature <= 0.0f};
}

GGM_HD Filters filters_of(const GlauberArgs& args, const Place& place) {
  const float top_p = value_of(args.options.top_p, place, static_cast<float>(args.top_p));
  float log_min_p = args.log_min_p;
  if (args.options.min_p.values != nullptr) {
    log_min_p = static_cast<float>(log(static_cast<double>(value_of(args.options.min_p, place, 0.0f))));
  }
  return {value_of(args.options.top_k, place, args.top_k), static_cast<double>(top_p), log_min_p,
          args.options.top_p_first};
}

GGM_HD bool leaves_out(const Filters& filters, int64_t vocab_size) {
  return filters.top_k < vocab_size || filters.top_p < 1.0 || filters.log_min_p > minus_infinity();
}

GGM_HD bool may_filter(const GlauberArgs& args) {
  const RowOptions& options = args.options;
  return args.top_k < args.vocab_size || args.top_p < 1.0 || args.log_min_p > minus_infinity() ||
         options.top_k.values != nullptr || options.top_p.values != nullptr || options.min_p.values != nullptr;
}

// What the words of the row's keep stream say.
struct Decision {
  uint32_t keep_word;
  float alpha;          // 1 without a mixture
  int64_t noise_token;  // that the mixture's noise draws, or -1: the law draws
};

GGM_HD int64_t noise_token_of(const GlauberArgs& args, uint32_t column_word, uint32_t accept_word) {
  const RowOptions& options = args.options;
  if (options.noise_mask >= 0) return options.noise_mask;
  const uint32_t column = uniform_token(column_word, static_cast<uint32_t>(args.vocab_size));
  return options.noise_table == nullptr ? column : alias_token(column, accept_word, options.noise_table[column]);
}

GGM_HD Decision decision_of(const GlauberArgs& args, const Place& place) {
  if (args.noise_rate == nullptr && !mixes(args)) return {0u, 1.0f, -1};
  const PhiloxBlock<uint32_t> words = words_of(place.race, kKeepStream, 0, philox_keys(seed_of(args, place)));
  Decision decision = {words.w0, value_of(args.options.mixture, place, 1.0f), -1};
  if (!takes_law(decision.alpha, words.w1)) decision.noise_token = noise_token_of(args, words.w2, words.w3);
  return decision;
}

// Log-odds that the present token is signal; h is its logit.
GGM_HD float row_verdict(const GlauberArgs& args, const Place& place, float h, float alpha) {
  const float rate = args.noise_rate[place.sequence * args.noise_row_stride + place.k * args.noise_stride];
  const float log_pi = log_noise_prob(args, token_at(args, place.token_at));
  return verdict(log_mixture(h, alpha, log_pi), rate, log_pi);
}

GGM_HD Edits edits_of(const GlauberArgs& args, const Place& place) {
  Edits edits = {args.options.softcap, -1, 0.0f};
  if (args.options.logit_shift.values != nullptr) {
    edits.shifted_token = token_at(args, place.token_at);
    edits.shift = value_of(args.options.logit_shift, place, 0.0f);
  }
  return edits;
}

// A logit of the present token, as the network gave it, as it counts.
GGM_HD float edited_present(float g, const Edits& edits) { return capped(g, edits.softcap) + edits.shift; }

// What is asked of a row; `draws_noise`: its token is known whatever the race brings.
GGM_HD Wants wants_of(const GlauberArgs& args) {
  const RowOptions& options = args.options;
  const bool normalizes = args.noise_rate != nullptr && args.normalize;
  return {args.log_prob != nullptr, options.entropy != nullptr,
          normalizes || args.log_sum_exp != nullptr || options.raw_log_prob != nullptr, options.margin != nullptr,
          options.argmax != nullptr};
}

// Whether something is asked of a row that its logits must be read for, whoever keeps or draws its token.
GGM_HD bool must_be_read(const GlauberArgs& args) {
  const RowOptions& options = args.options;
  return args.log_sum_exp != nullptr || options.entropy != nullptr || options.margin != nullptr ||
         options.argmax != nullptr;
}

// By-products of a row that nothing is known of.
GGM_HD void note_nothing(const GlauberArgs& args, int64_t row) {
  const RowOptions& options = args.options;
  float* const by_products[] = {args.log_sum_exp,     args.log_prob,   args.keep_prob,
                                options.raw_log_prob, options.entropy, options.margin};
  for (float* by_product : by_products) {
    if (by_product != nullptr) by_product[row] = not_a_number();
  }
  if (options.argmax != nullptr) options.argmax[row] = -1;
}

// By-products of a token that was not drawn.
GGM_HD void note_kept(const GlauberArgs& args, int64_t row) {
  if (args.log_prob != nullptr) args.log_prob[row] = not_a_number();
  if (args.options.raw_log_prob != nullptr) args.options.raw_log_prob[row] = not_a_number();
}

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
