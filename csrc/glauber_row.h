// The rows of a Glauber step, on CPUs and GPUs: where each is, what it was given, what is decided of it before its
// race and after.
#pragma once

#include "kernels.h"
#include "numerics/counter.h"
#include "numerics/philox.h"

namespace ggm {

GGM_HD float not_a_number() { return float_of(0x7FC00000u); }

// Coordinates of a row's noise.
struct Race {
  uint64_t sample_id;
  uint32_t position, step;
};

// Four words of a stream of the row.
GGM_HD PhiloxBlock<uint32_t> words_of(const Race& race, uint32_t stream, uint32_t vocab_block,
                                      const PhiloxKeys<uint32_t>& keys) {
  return philox4x32(counter_word0(stream, race.sample_id, vocab_block), race.position, counter_word2(race.sample_id),
                    race.step, keys);
}

// The law that a row is drawn from, beside its logits.
struct Law {
  float inverse_temperature;
  float threshold;  // of z relative to the largest logit of the row: less has no chance
  bool filtered;    // else there is no threshold
  bool greedy;      // temperature 0
};

// The filters of one row.
struct Filters {
  int64_t top_k;    // vocab_size or more: none
  double top_p;     // 1: none
  float log_min_p;  // -inf: none
  bool top_p_first;
};

// What is asked of a row beside its winner.
struct Wants {
  bool law_mass, entropy, raw_mass, margin, argmax;
};

// Changes to the logits of a row before anything else.
struct Edits {
  float softcap;          // 0: none
  int64_t shifted_token;  // or -1
  float shift;
};

GGM_HD float capped(float g, float softcap) { return softcap > 0.0f ? softcap * tanhf(g / softcap) : g; }

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
  const int64_t step = args.step_pointer == nullptr ? args.step : *args.step_pointer;
  place.race.step = static_cast<uint32_t>(value_of(args.options.step, place, step));
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

GGM_HD bool reads_present(const GlauberArgs& args) {
  return args.noise_rate != nullptr || args.options.logit_shift.values != nullptr;
}

// A row without a position, or whose position is frozen: nothing is done for it. Nor where a position or a token that
// is read is out of range: on a GPU nobody has looked before.
GGM_HD bool is_idle(const GlauberArgs& args, const Place& place) {
  if (place.position < 0 || place.position >= args.length) return true;
  if (args.frozen != nullptr && args.frozen[place.sequence * args.length + place.position] != 0) return true;
  if (!reads_present(args)) return false;
  const int64_t token = token_at(args, place.token_at);
  return token < 0 || token >= (args.options.token_bound > 0 ? args.options.token_bound : args.vocab_size);
}

GGM_HD bool mixes(const GlauberArgs& args) { return args.options.mixture.values != nullptr; }

GGM_HD float log_noise_prob(const GlauberArgs& args, int64_t token) {
  return args.noise_log_probs == nullptr ? -logf(static_cast<float>(args.vocab_size)) : args.noise_log_probs[token];
}

GGM_HD Law law_of(const GlauberArgs& args, const Place& place) {
  const float minus_infinity = float_of(0xFF800000u);
  if (args.options.temperature.values == nullptr) return {args.inverse_temperature, minus_infinity, false, args.greedy};
  const float temperature = value_of(args.options.temperature, place, args.temperature);
  return {inverse_of(temperature), minus_infinity, false, temperature <= 0.0f};
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
  return filters.top_k < vocab_size || filters.top_p < 1.0 || filters.log_min_p > float_of(0xFF800000u);
}

GGM_HD bool may_filter(const GlauberArgs& args) {
  const RowOptions& options = args.options;
  return args.top_k < args.vocab_size || args.top_p < 1.0 || args.log_min_p > float_of(0xFF800000u) ||
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

// What is asked of the rows.
GGM_HD Wants wants_of(const GlauberArgs& args) {
  const RowOptions& options = args.options;
  const bool normalizes = args.noise_rate != nullptr && args.normalize;
  return {args.log_prob != nullptr, options.entropy != nullptr,
          normalizes || args.log_sum_exp != nullptr || options.raw_log_prob != nullptr, options.margin != nullptr,
          options.argmax != nullptr};
}

// Whether something is asked of a row that its logits must be read for, whoever keeps or draws its token. The
// probability of keeping it follows from one logit, but only of a row that has a law.
GGM_HD bool must_be_read(const GlauberArgs& args) {
  const RowOptions& options = args.options;
  return args.log_sum_exp != nullptr || args.keep_prob != nullptr || options.entropy != nullptr ||
         options.margin != nullptr || options.argmax != nullptr;
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

// Whether the logit of the present token alone may tell that a row keeps it, and nothing else is asked of the row.
GGM_HD bool keeps_unread(const GlauberArgs& args) {
  return args.noise_rate != nullptr && !args.normalize && !must_be_read(args);
}

// What is known of a row before its race.
struct Early {
  bool settles;  // nothing is left to do but to note it
  bool is_idle;
};

// A row settles early if it has no position or is frozen, or keeps its token, seen from the logit of that alone, and
// nothing is asked of it that takes the others. Whatever changes a token has read its row: it may have no law.
template <class PresentLogit>
GGM_HD Early early_of(const GlauberArgs& args, const Place& place, const PresentLogit& present_logit) {
  if (is_idle(args, place)) return {true, true};
  if (!keeps_unread(args)) return {false, false};
  const Decision decision = decision_of(args, place);
  const int64_t token = token_at(args, place.token_at);
  const float h = token < args.vocab_size ? edited_present(present_logit(token), edits_of(args, place))
                                          : float_of(0xFF800000u);
  return {keeps_token(row_verdict(args, place, h, decision.alpha), decision.keep_word), false};
}

// Writes what an early settlement brings.
GGM_HD void note_early(const GlauberArgs& args, int64_t row, const Early& early) {
  if (early.is_idle) return note_nothing(args, row);
  note_kept(args, row);
}

// By-products of a row that was read and has a law, but for those of the token drawn.
GGM_HD void note_row(const GlauberArgs& args, int64_t row, const RowState& state, const Law& law) {
  const RowOptions& options = args.options;
  if (args.log_sum_exp != nullptr) args.log_sum_exp[row] = log_sum_exp(state);
  if (options.entropy != nullptr) options.entropy[row] = law.greedy ? 0.0f : entropy_of(state);
  if (options.margin != nullptr) options.margin[row] = margin_of(state);
  if (options.argmax != nullptr) options.argmax[row] = state.argmax;
}

// By-products of the token drawn, of logit g.
GGM_HD void note_drawn(const GlauberArgs& args, int64_t row, const RowState& state, const Law& law,
                       const Decision& decision, int64_t token, float g) {
  if (args.options.raw_log_prob != nullptr) args.options.raw_log_prob[row] = raw_log_prob(state, g);
  if (args.log_prob == nullptr) return;
  float log_prob;
  if (law.greedy) {
    log_prob = token == static_cast<int64_t>(state.winner) ? 0.0f : float_of(0xFF800000u);
  } else {
    log_prob = law_log_prob(state, g, law.inverse_temperature, law.threshold);
  }
  if (mixes(args)) log_prob = log_mixture(log_prob, decision.alpha, log_noise_prob(args, token));
  args.log_prob[row] = log_prob;
}

// What is left to do once the race of a row is run. False where it has no law.
GGM_HD bool settle_row(const GlauberArgs& args, int64_t row, const Place& place, const RowState& state,
                       const Law& law) {
  if (!has_law(state)) {
    note_nothing(args, row);
    return false;
  }
  const Decision decision = decision_of(args, place);
  bool keeps = false;
  if (args.noise_rate != nullptr) {
    const float h = args.normalize ? raw_log_prob(state, state.present) : state.present;
    const float f = row_verdict(args, place, h, decision.alpha);
    keeps = keeps_token(f, decision.keep_word);
    if (args.keep_prob != nullptr) args.keep_prob[row] = sigmoid(f);
  }
  note_row(args, row, state, law);
  if (keeps) {
    note_kept(args, row);
    return true;
  }
  const bool is_noise = decision.noise_token >= 0;
  const int64_t token = is_noise ? decision.noise_token : static_cast<int64_t>(state.winner);
  note_drawn(args, row, state, law, decision, token, is_noise ? state.noise : state.drawn);
  write_token(args, place.token_at, token);
  return true;
}

}  // namespace ggm
