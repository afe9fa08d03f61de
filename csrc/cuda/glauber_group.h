// A group of a row's tokens in the registers of a warp: its largest logit and its sums, in an order that depends on
// nothing but the group.
#pragma once

#include "cuda/glauber_rows.h"

namespace ggm::cuda {
namespace {

constexpr int kOfLane = kRaceGroup / kWarp;  // tokens of a lane

// Chunk c of a lane lies kWarp chunks behind chunk c - 1.
template <class T>
struct Group {
  static constexpr int kSize = Chunk<T>::kSize, kStride = kWarp * kSize, kChunks = kOfLane / kSize;
  Chunk<T> chunks[kChunks];
  __device__ __forceinline__ float value(int i) const { return chunks[i / kSize].value(i % kSize); }
};

// The same with bias, cap and shift.
struct EditedGroup {
  float values[kOfLane];
  __device__ __forceinline__ float value(int i) const { return values[i]; }
};

// Sixteen bytes from `misaligned` bytes behind an aligned address on: of two aligned reads. Loads of another lane's
// bytes come from the cache.
template <class T>
__device__ __forceinline__ Chunk<T> load_across(const T* from, uint32_t misaligned) {
  const char* const floor = reinterpret_cast<const char*>(from) - misaligned;
  const Chunk<T> low = load_aligned<T>(floor), high = load_aligned<T>(floor + 16);
  const uint32_t words[8] = {low.words[0],  low.words[1],  low.words[2],  low.words[3],
                             high.words[0], high.words[1], high.words[2], high.words[3]};
  uint32_t by_two[6], by_one[5];
#pragma unroll
  for (int j = 0; j < 6; ++j) by_two[j] = (misaligned & 8u) != 0 ? words[j + 2] : words[j];
#pragma unroll
  for (int j = 0; j < 5; ++j) by_one[j] = (misaligned & 4u) != 0 ? by_two[j + 1] : by_two[j];
  Chunk<T> chunk;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    chunk.words[j] = by_one[j];
    if (sizeof(T) == 2 && (misaligned & 2u) != 0) chunk.words[j] = by_one[j] >> 16 | by_one[j + 1] << 16;
  }
  return chunk;
}

// The tokens from `begin` on, -inf from `end` on. Nothing outside of row[0 .. end) is read: at an odd address the first
// and the last groups are read one by one.
template <class T>
__device__ __forceinline__ Group<T> load_group(const T* row, uint32_t begin, uint32_t end) {
  using Held = Group<T>;
  const uint32_t misaligned = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row + begin) % 16);
  const uint32_t at = begin + threadIdx.x % kWarp * Held::kSize, group_end = begin + kRaceGroup;
  Group<T> group;
  if (misaligned == 0 && group_end <= end) {
#pragma unroll
    for (int c = 0; c < Held::kChunks; ++c) group.chunks[c] = load_aligned<T>(row + at + c * Held::kStride);
  } else if (misaligned != 0 && begin > 0 && group_end + Held::kSize <= end) {
#pragma unroll
    for (int c = 0; c < Held::kChunks; ++c) group.chunks[c] = load_across(row + at + c * Held::kStride, misaligned);
  } else {
#pragma unroll
    for (int c = 0; c < Held::kChunks; ++c) group.chunks[c] = load_chunk<false>(row, at + c * Held::kStride, end);
  }
  return group;
}

template <class T>
__device__ __forceinline__ EditedGroup edited_group(const RowLogits<T>& row, uint32_t begin) {
  using Held = Group<T>;
  const Held group = load_group(row.logits, begin, row.tokens);
  const uint32_t at = begin + threadIdx.x % kWarp * Held::kSize;
  EditedGroup edited;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    const uint32_t token = at + i / Held::kSize * Held::kStride + i % Held::kSize;
    const float g = group.value(i);
    edited.values[i] = token < row.tokens ? row.edited(g, token) : g;
  }
  return edited;
}

// In all lanes; NaN where a logit is.
template <class Values>
__device__ __forceinline__ float top_of(const Values& group) {
  float tops[4] = {group.value(0), group.value(1), group.value(2), group.value(3)};
#pragma unroll
  for (int i = 4; i < kOfLane; ++i) tops[i % 4] = larger_or_nan(tops[i % 4], group.value(i));
  return warp_largest(larger_or_nan(larger_or_nan(tops[0], tops[1]), larger_or_nan(tops[2], tops[3])));
}

template <class Values>
__device__ __forceinline__ float second_of(const Values& group) {
  Two two = {minus_infinity(), minus_infinity()};
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) two.take(group.value(i));
  return warp_two(two).second;
}

// Four chains of a lane's sums, added up over the warp.
struct Chains {
  float of[4] = {};
  __device__ __forceinline__ void add(int i, float value) { of[i % 4] += value; }
  __device__ __forceinline__ float total() const { return warp_sum((of[0] + of[1]) + (of[2] + of[3])); }
};

// Sum of exp(z), z relative to a finite top.
template <class Values>
__device__ __forceinline__ float mass_of(const Values& group, float top, float slope) {
  Chains mass;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) mass.add(i, exp2_for_sum((group.value(i) - top) * slope));
  return mass.total();
}

// And of z exp(z).
template <class Values>
__device__ __forceinline__ float moment_of(const Values& group, float top, float slope) {
  Chains moment;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    const float x = (group.value(i) - top) * slope;
    moment.add(i, fmaxf(x, -125.0f) * exp2_for_sum(x));
  }
  return moment.total() * kLog2;
}

// Of what the filters leave.
template <class Values>
__device__ __forceinline__ float mass_above_threshold(const Values& group, float top, float row_top, const Law& law) {
  const float slope = binary_slope(law.inverse_temperature);
  Chains mass;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    const float g = group.value(i), power = exp2_for_sum((g - top) * slope);
    mass.add(i, tempered(g, row_top, law.inverse_temperature) >= law.threshold ? power : 0.0f);
  }
  return mass.total();
}

template <class Values>
__device__ __forceinline__ GroupRecord record_of_infinite(const Values& group) {
  float count = 0.0f;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) count += group.value(i) == -minus_infinity() ? 1.0f : 0.0f;
  count = warp_sum(count);
  return {-minus_infinity(), count, count, 0.0f, count, count > 1.0f ? -minus_infinity() : second_of(group)};
}

// What a race needs to know of a group without filters and by-products of many kinds.
template <class Values>
__device__ __forceinline__ GroupRecord plain_record(const Values& group, const Law& law) {
  const float top = top_of(group), nothing = minus_infinity();
  if (!(top > nothing)) return {top, 0.0f, 0.0f, 0.0f, 0.0f, nothing};
  if (top == -nothing) return record_of_infinite(group);
  const float mass = mass_of(group, top, binary_slope(law.inverse_temperature));
  return {top, mass, mass, 0.0f, mass, nothing};
}

// And all that may be asked. row_top: the largest logit of the row where there are filters.
template <class Values>
__device__ __forceinline__ GroupRecord full_record(const Values& group, const Law& law, const Wants& wants,
                                                   float row_top) {
  GroupRecord record = plain_record(group, law);
  if (!(record.top > minus_infinity()) || record.top == -minus_infinity()) return record;
  const float slope = binary_slope(law.inverse_temperature);
  if (wants.entropy) record.moment = moment_of(group, record.top, slope);
  if (wants.raw_mass && law.inverse_temperature != 1.0f) record.raw_mass = mass_of(group, record.top, kBinaryLog2E);
  if (wants.margin) record.second = second_of(group);
  if (law.filtered) record.law_mass = mass_above_threshold(group, record.top, row_top, law);
  return record;
}

}  // namespace
}  // namespace ggm::cuda
