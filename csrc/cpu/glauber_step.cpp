// One pass over the logits of a row, a chunk at a time: its maximum, then the race of its tokens against it while
// they are in cache. A cheap test leaves a few tokens of a row for which logarithms are needed at all.
#include "cpu/cut.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/race.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kParallelFrom = 1 << 14;  // logits below which a second thread is not worth waking
constexpr int64_t kRowCost = 64;            // of a row whatever its length, in logits

GGM_HD bool worth_threads(const LogitsTile& tile) { return tile.rows * (tile.tokens + kRowCost) >= kParallelFrom; }

template <class T>
GGM_HD const T* row_logits(const LogitsTile& tile, int64_t row) {
  return static_cast<const T*>(tile.logits) + row / tile.group * tile.group_stride +
         row % tile.group * tile.row_stride;
}

GGM_HD int64_t row_id(const LogitsTile& tile, int64_t row) {
  return tile.row_ids == nullptr ? tile.row_begin + row : tile.row_ids[row];
}

// Where the token of row b * count + k stands, and its coordinates.
struct Place {
  int64_t sequence, k, position, token_at;
  Race race;
};

GGM_HD Place place_of(const GlauberArgs& args, int64_t row) {
  Place place;
  place.sequence = row / args.count;
  place.k = row % args.count;
  place.position = args.positions[place.sequence * args.position_row_stride + place.k];
  place.token_at = place.sequence * args.token_row_stride + place.position * args.token_stride;
  place.race.sample_id =
      static_cast<uint64_t>(args.sample_ids == nullptr ? place.sequence : args.sample_ids[place.sequence]);
  place.race.position = static_cast<uint32_t>(place.position);
  place.race.step = static_cast<uint32_t>(args.step);
  return place;
}

GGM_HD int64_t token_at(const GlauberArgs& args, int64_t at) {
  return args.token_bytes == 8 ? static_cast<const int64_t*>(args.tokens)[at]
                               : static_cast<const int32_t*>(args.tokens)[at];
}

GGM_HD void write_token(const GlauberArgs& args, int64_t at, uint32_t token) {
  if (args.token_bytes == 8) {
    static_cast<int64_t*>(args.tokens)[at] = token;
  } else {
    static_cast<int32_t*>(args.tokens)[at] = static_cast<int32_t>(token);
  }
}

GGM_HD bool is_frozen(const GlauberArgs& args, const Place& place) {
  return args.frozen != nullptr && args.frozen[place.sequence * args.length + place.position] != 0;
}

GGM_HD float row_verdict(const GlauberArgs& args, const Place& place, float g) {
  const float rate = args.noise_rate[place.sequence * args.noise_row_stride + place.k * args.noise_stride];
  const float log_noise_prob = args.noise_log_probs == nullptr ? -logf(static_cast<float>(args.vocab_size))
                                                               : args.noise_log_probs[token_at(args, place.token_at)];
  return verdict(g, rate, log_noise_prob);
}

GGM_HD bool row_keeps(const Place& place, uint64_t seed, float f) { return keeps_token(f, keep_word(place.race, seed)); }

// A row that nothing is known of, as nothing was done for it.
void settle_frozen(const GlauberArgs& args, int64_t row) {
  float* const by_products[] = {args.log_sum_exp, args.log_prob, args.keep_prob};
  for (float* by_product : by_products) {
    if (by_product != nullptr) by_product[row] = float_of(0x7FC00000u);
  }
}

// What is left to do once the race of a row is run.
void settle_row(const GlauberArgs& args, int64_t row, const RaceState& state) {
  const Place place = place_of(args, row);
  bool draws = has_law(state);
  if (args.noise_rate != nullptr) {
    const float g = args.normalize ? state.present - log_sum_exp(state) : state.present;
    const float f = row_verdict(args, place, g);
    if (row_keeps(place, args.seed, f)) draws = false;
    if (args.keep_prob != nullptr) args.keep_prob[row] = sigmoid(f);
  }
  if (args.log_sum_exp != nullptr) args.log_sum_exp[row] = log_sum_exp(state);
  if (args.log_prob != nullptr) args.log_prob[row] = draws ? winner_log_prob(state) : float_of(0x7FC00000u);
  if (draws) write_token(args, place.token_at, state.winner);
}

// Whether the row keeps its token whatever its race brings, seen from the logit of that token alone. If so, what
// settle_row would note is noted.
template <class PresentLogit>
bool settled_before_race(const GlauberArgs& args, int64_t row, const PresentLogit& present_logit) {
  const Place place = place_of(args, row);
  if (is_frozen(args, place)) {
    settle_frozen(args, row);
    return true;
  }
  if (args.log_sum_exp != nullptr || args.noise_rate == nullptr || args.normalize) return false;
  const float f = row_verdict(args, place, present_logit(token_at(args, place.token_at)));
  const bool keeps = row_keeps(place, args.seed, f);
  if (keeps && args.keep_prob != nullptr) args.keep_prob[row] = sigmoid(f);
  if (keeps && args.log_prob != nullptr) args.log_prob[row] = float_of(0x7FC00000u);
  return keeps;
}

// In the precision of the factors, as the product itself is rounded.
template <class T>
float present_logit_of(const Factors& factors, int64_t row, int64_t token) {
  const T* hidden = static_cast<const T*>(factors.hidden) + row * factors.hidden_stride;
  float g = dot(hidden, static_cast<const T*>(factors.weight) + token * factors.weight_stride, factors.hidden_size);
  if (factors.bias != nullptr) g += to_float(static_cast<const T*>(factors.bias)[token]);
  T rounded;
  round_to(g, rounded);
  return to_float(rounded);
}

template <class T>
int64_t undecided_rows(const GlauberArgs& args, const Factors& factors, int64_t* row_ids, int threads) {
  const int64_t rows = args.batch * args.count;
  for_each(rows, threads, rows * factors.hidden_size >= kParallelFrom, [&](int64_t row) {
    const auto present_logit = [&](int64_t token) { return present_logit_of<T>(factors, row, token); };
    row_ids[row] = settled_before_race(args, row, present_logit) ? -1 : row;
  });
  int64_t undecided = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (row_ids[row] >= 0) row_ids[undecided++] = row;
  }
  return undecided;
}

template <class T>
void race_tile(const GlauberArgs& args, const LogitsTile& tile, RaceState* states, int threads) {
  const RaceKeys keys = race_keys(args.seed);
  const Law law = law_of(args, minus_infinity());
  for_each(tile.rows, threads, worth_threads(tile), [&](int64_t i) {
    const Place place = place_of(args, row_id(tile, i));
    const Span<T> span = {row_logits<T>(tile, i), tile.token_begin, tile.tokens};
    race_span(span, place.race, keys, law, token_at(args, place.token_at), states[i]);
  });
}

template <class T>
void step_rows(const GlauberArgs& args, const LogitsTile& tile, int threads) {
  const RaceKeys keys = race_keys(args.seed);
  const bool filtered = has_filter(args);
  on_threads(threads, worth_threads(tile), [&](const Member& member) {
    Depths depths(filtered ? args.vocab_size : 0);
    member.as_free(tile.rows, 4, [&](int64_t i) {
      const T* logits = row_logits<T>(tile, i);
      const int64_t row = row_id(tile, i);
      if (settled_before_race(args, row, [=](int64_t token) { return to_float(logits[token]); })) return;
      const Place place = place_of(args, row);
      RaceState state = race_start();
      const Span<T> span = {logits, 0, args.vocab_size};
      const float cut = filtered ? row_cut(args, span, depths, state) : minus_infinity();
      race_span(span, place.race, keys, law_of(args, cut), token_at(args, place.token_at), state);
      settle_row(args, row, state);
    });
  });
}

}  // namespace

void glauber_step(const GlauberArgs& args, const LogitsTile& tile, int threads) {
  switch (tile.dtype) {
    case Float::float32:
      return step_rows<float>(args, tile, threads);
    case Float::bfloat16:
      return step_rows<BFloat16>(args, tile, threads);
    case Float::float16:
      return step_rows<Float16>(args, tile, threads);
  }
}

void glauber_race(const GlauberArgs& args, const LogitsTile& tile, RaceState* states, int threads) {
  switch (tile.dtype) {
    case Float::float32:
      return race_tile<float>(args, tile, states, threads);
    case Float::bfloat16:
      return race_tile<BFloat16>(args, tile, states, threads);
    case Float::float16:
      return race_tile<Float16>(args, tile, states, threads);
  }
}

void glauber_settle(const GlauberArgs& args, const int64_t* row_ids, const RaceState* states, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) settle_row(args, row_ids[i], states[i]);
}

int64_t glauber_undecided(const GlauberArgs& args, const Factors& factors, int64_t* row_ids, int threads) {
  switch (factors.dtype) {
    case Float::float32:
      return undecided_rows<float>(args, factors, row_ids, threads);
    case Float::bfloat16:
      return undecided_rows<BFloat16>(args, factors, row_ids, threads);
    case Float::float16:
      return undecided_rows<Float16>(args, factors, row_ids, threads);
  }
  return 0;
}

}  // namespace ggm::cpu::GGM_ISA
