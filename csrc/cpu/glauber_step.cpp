// One pass over the logits of a row, a group at a time: its maximum and the sum of its exponentials while it is in
// cache. The groups race by their masses, then the tokens of the one that won.
#include "cpu/threshold.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/row_race.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kParallelFrom = 1 << 14;  // logits below which a second thread is not worth waking
constexpr int64_t kRowCost = 64;            // of a row whatever its length, in logits
constexpr int64_t kIdleCost = 4;            // of a row that nothing is done for

GGM_HD bool worth_threads(const LogitsTile& tile) { return tile.rows * (tile.tokens + kRowCost) >= kParallelFrom; }

template <class T>
GGM_HD const T* row_logits(const LogitsTile& tile, int64_t row) {
  return static_cast<const T*>(tile.logits) + row / tile.group * tile.group_stride +
         row % tile.group * tile.row_stride;
}

GGM_HD int64_t row_id(const LogitsTile& tile, int64_t row) {
  return tile.row_ids == nullptr ? tile.row_begin + row : tile.row_ids[row];
}

// Of a row that is done with before its race what it brings is noted.
template <class PresentLogit>
Early settle_early(const GlauberArgs& args, int64_t row, const Place& place, const PresentLogit& present_logit) {
  const Early early = early_of(args, place, present_logit);
  if (early.settles) note_early(args, row, early);
  return early;
}

bool may_settle_early(const GlauberArgs& args) {
  return args.frozen != nullptr || args.position_row_stride != 0 || keeps_unread(args);
}

// Of a row that is not idle, in logits.
struct Costs {
  int64_t settled, undecided;
};

// Settles rows from the first on, until what they take is worth a second thread. How many it went through. The first
// undecided row is not counted: one thread has to race it, and another could help with none.
template <class Settle>
int64_t settle_alone(int64_t rows, const Costs& costs, const Settle& settle) {
  int64_t row = 0, work = 0, undecided = 0;
  while (row < rows && work < kParallelFrom) {
    const Early early = settle(row++);
    if (!early.settles) work += undecided++ > 0 ? costs.undecided : 0;
    else work += early.is_idle ? kIdleCost : costs.settled;
  }
  return row;
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
  const auto settle = [&](int64_t row) {
    const auto present_logit = [&](int64_t token) { return present_logit_of<T>(factors, row, token); };
    const Early early = settle_early(args, row, place_of(args, row), present_logit);
    row_ids[row] = early.settles ? -1 : row;
    return early;
  };
  const int64_t cost = keeps_unread(args) ? factors.hidden_size : kIdleCost;
  const int64_t settled = settle_alone(rows, {cost, cost}, settle);
  for_each(rows - settled, threads, settled < rows, [&](int64_t i) { settle(settled + i); });
  int64_t undecided = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (row_ids[row] >= 0) row_ids[undecided++] = row;
  }
  return undecided;
}

// The keys of all rows, or of one with a seed of its own.
class Keys {
 public:
  explicit Keys(const GlauberArgs& args) : args_(args), keys_(race_keys(args.seed)) {}
  GGM_HD_MEMBER const RaceKeys& of(const Place& place) {
    if (args_.options.seed.values != nullptr) keys_ = race_keys(seed_of(args_, place));
    return keys_;
  }

 private:
  const GlauberArgs& args_;
  RaceKeys keys_;
};

GGM_HD Row row_of(const GlauberArgs& args, const Place& place, const Law& law, const RaceKeys& keys) {
  const int64_t present = args.noise_rate == nullptr ? -1 : token_at(args, place.token_at);
  const int64_t noise = mixes(args) ? decision_of(args, place).noise_token : -1;
  return {place.race, &keys, law, wants_of(args), edits_of(args, place), args.vocab_size, present, noise};
}

// The largest logit of a row and its threshold; the state begins at that top.
template <class T>
void find_threshold(const Filters& filters, const Span<T>& span, Depths& depths, Law& law, RowState& state) {
  const GroupTop largest = largest_of<T, true>(span.logits, span.tokens);
  state.top = largest.top;
  state.has_nan = largest.has_nan ? 1u : 0u;
  law.filtered = true;
  if (has_law(state)) law.threshold = row_threshold(filters, span, law.inverse_temperature, largest.top, depths);
}

template <class T>
void race_tile(const GlauberArgs& args, const LogitsTile& tile, RowState* states, int threads) {
  on_threads(threads, worth_threads(tile), [&](const Member& member) {
    Keys keys(args);
    member.in_parts(tile.rows, [&](int64_t i) {
      const Place place = place_of(args, row_id(tile, i));
      const Row row = row_of(args, place, law_of(args, place), keys.of(place));
      RowRacer(row, states[i]).run(Span<T>{row_logits<T>(tile, i), tile.token_begin, tile.tokens});
    });
  });
}

// Memory of a thread for rows with filters.
struct FilterSpace {
  Depths depths;
  float* edited;
  FilterSpace(int64_t tokens, bool edits) : depths(tokens), edited(nullptr) {
    if (edits) edited = static_cast<float*>(std::malloc(sizeof(float) * static_cast<size_t>(depths.size + kRaceGroup)));
  }
  ~FilterSpace() { std::free(edited); }
  FilterSpace(const FilterSpace&) = delete;
  FilterSpace& operator=(const FilterSpace&) = delete;
};

// A filtered row; with edits it is raced from an edited copy.
template <class T>
void race_filtered(Row& row, const Filters& filters, const Span<T>& span, FilterSpace& space, RowState& state) {
  const bool edits = row.edits.softcap > 0.0f || row.edits.shifted_token >= 0;
  if (!edits) {
    find_threshold(filters, span, space.depths, row.law, state);
    RowRacer(row, state).run(span);
    return;
  }
  for (int64_t begin = 0; begin < span.tokens; begin += kRaceGroup) {
    const int64_t left = span.tokens - begin;
    EditedGroup group;
    group.fill(Span<T>{span.logits + begin, begin, left < kRaceGroup ? left : kRaceGroup}, row.edits);
    memcpy(space.edited + begin, group.logits, sizeof(float) * static_cast<size_t>(left < kRaceGroup ? left : kRaceGroup));
  }
  const Span<float> edited = {space.edited, 0, span.tokens};
  row.edits = {0.0f, -1, 0.0f};
  find_threshold(filters, edited, space.depths, row.law, state);
  RowRacer(row, state).run(edited);
}

// The rows of a tile from `first` on, and whether more than one thread shall do them: those before it are settled.
struct Rest {
  int64_t first;
  bool is_much;
};

template <class Settle>
Rest rest_of(const GlauberArgs& args, const LogitsTile& tile, const Settle& settle) {
  if (!worth_threads(tile) || !may_settle_early(args)) return {0, worth_threads(tile)};
  int64_t first = tile.rows;
  const int64_t seen = settle_alone(tile.rows, {kRowCost, kRowCost + tile.tokens}, [&](int64_t i) {
    const Early early = settle(i, place_of(args, row_id(tile, i)));
    if (!early.settles && i < first) first = i;
    return early;
  });
  return {first < seen ? first : seen, seen < tile.rows};
}

template <class T>
int64_t step_rows(const GlauberArgs& args, const LogitsTile& tile, int threads) {
  const bool may_be_filtered = may_filter(args);
  const bool edits = args.options.softcap > 0.0f || args.options.logit_shift.values != nullptr;
  const auto settle = [&](int64_t i, const Place& place) {
    const T* logits = row_logits<T>(tile, i);
    return settle_early(args, row_id(tile, i), place, [=](int64_t token) { return to_float(logits[token]); });
  };
  const Rest rest = rest_of(args, tile, settle);
  if (rest.first == tile.rows) return 0;
  int64_t lawless = 0;
  on_threads(threads, rest.is_much, [&](const Member& member) {
    Keys keys(args);
    int64_t of_member = 0;
    FilterSpace space(may_be_filtered ? args.vocab_size : 0, may_be_filtered && edits);
    member.as_free(tile.rows - rest.first, 4, [&](int64_t after_first) {
      const int64_t i = rest.first + after_first;
      const int64_t id = row_id(tile, i);
      const Place place = place_of(args, id);
      if (settle(i, place).settles) return;
      Row row = row_of(args, place, law_of(args, place), keys.of(place));
      RowState state = row_start();
      const Span<T> span = {row_logits<T>(tile, i), 0, args.vocab_size};
      const Filters filters = filters_of(args, place);
      if (!row.law.greedy && leaves_out(filters, args.vocab_size)) {
        race_filtered(row, filters, span, space, state);
      } else {
        RowRacer(row, state).run(span);
      }
      if (!settle_row(args, id, place, state, row.law)) ++of_member;
    });
    __atomic_fetch_add(&lawless, of_member, __ATOMIC_RELAXED);
  });
  return lawless;
}

}  // namespace

int64_t glauber_step(const GlauberArgs& args, const LogitsTile& tile, int threads) {
  switch (tile.dtype) {
    case Float::float32:
      return step_rows<float>(args, tile, threads);
    case Float::bfloat16:
      return step_rows<BFloat16>(args, tile, threads);
    case Float::float16:
      return step_rows<Float16>(args, tile, threads);
  }
  return 0;
}

void glauber_race(const GlauberArgs& args, const LogitsTile& tile, RowState* states, int threads) {
  switch (tile.dtype) {
    case Float::float32:
      return race_tile<float>(args, tile, states, threads);
    case Float::bfloat16:
      return race_tile<BFloat16>(args, tile, states, threads);
    case Float::float16:
      return race_tile<Float16>(args, tile, states, threads);
  }
}

int64_t glauber_settle(const GlauberArgs& args, const int64_t* row_ids, const RowState* states, int64_t rows) {
  int64_t lawless = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const Place place = place_of(args, row_ids[i]);
    if (!settle_row(args, row_ids[i], place, states[i], law_of(args, place))) ++lawless;
  }
  return lawless;
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
