// Sums of bytes against plain loops, and products of one row, of six rows and of widened weights with each other.
// Built and run by test_other_processors.py. Prints what differs.
#include <cstdio>
#include <random>

#include "block_tiles.h"

using namespace caravan;

namespace {

template <int kBits>
int wrong_sums(std::mt19937& random) {
  int num_wrong = 0;
  for (int round = 0; round < 2000; round++) {
    const bool is_extreme = round % 3 == 0;
    int32_t expected[kLanes], sums[kLanes];
    for (int32_t& sum : expected) sum = (int32_t)(random() % 200001) - 100000;
    ByteSums<kBits> byte_sums;
    byte_sums.start(load<i32x16>(expected));
    for (int quad = 0; quad < 8; quad++) {
      int8_t row[4];
      uint8_t values[4 * kLanes];
      for (int8_t& byte : row) byte = is_extreme ? (round % 2 ? 127 : -127) : (int)(random() % 255) - 127;
      for (uint8_t& value : values) value = is_extreme ? (1 << kBits) - 1 : random() % (1 << kBits);
      for (int i = 0; i < 4 * kLanes; i++) expected[i / 4] += row[i % 4] * values[i];
      byte_sums.add(load<int32_t>(row), load<u32x16>(values));
    }
    store(sums, byte_sums.total());
    num_wrong += std::memcmp(sums, expected, sizeof sums) != 0;
  }
  if (num_wrong) std::printf("%d sums of values of %d bits are wrong\n", num_wrong, kBits);
  return num_wrong;
}

// Small positive numbers in float16.
void set_scales(uint8_t* to, int count, std::mt19937& random) {
  for (int i = 0; i < count; i++) {
    const uint16_t scale = 0x2000 + random() % 1024;
    std::memcpy(to + 2 * i, &scale, sizeof scale);
  }
}

template <class Form>
int wrong_products(const char* name, std::mt19937& random) {
  using Tile = BlockTile<Form>;
  constexpr int64_t kInputs = 512, kGroups = kInputs / kGroup, kRows = 6, kBlocks = kGroups / Form::kGroupsOfBlock;
  std::vector<uint8_t> packed(kBlocks * Tile::kBlockBytes + 5 * Tile::kGroupBytes);
  for (uint8_t& byte : packed) byte = random();
  for (int64_t block = 0; block < kBlocks; block++) {
    uint8_t* head = packed.data() + block * Tile::kBlockBytes;
    set_scales(head, (Form::kHeadBytes ? Form::kHeadBytes : Form::kScaleBytes) / 2, random);
  }
  BlockRows<Form::kPart> rows(kRows, kInputs);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(kInputs);
  for (int64_t row = 0; row < kRows; row++) {
    for (float& number : numbers) number = normal(random);
    rows.set(row, numbers.data());
  }
  const Tile tile{packed.data(), kGroups};
  f32x16 alone[kRows][2], together[kRows][2], wide[kRows][2] = {};
  for (int64_t row = 0; row < kRows; row++) {
    f32x16 sums[1][2] = {};
    tile.template multiply<1, 2>(rows, row, 0, Ahead{}, sums);
    for (int half = 0; half < 2; half++) alone[row][half] = sums[0][half];
  }
  for (int half = 0; half < 2; half++) {
    f32x16 sums[kRows][1] = {};
    tile.template multiply<kRows, 1>(rows, 0, half, Ahead{}, sums);
    for (int64_t row = 0; row < kRows; row++) together[row][half] = sums[row][0];
  }
  for (int64_t first = 0; first < kGroups; first += kStepsAtOnce) {
    const Steps steps{first, std::min(first + kStepsAtOnce, kGroups)};
    const std::unique_ptr<WideBlocks<Form>> some(new WideBlocks<Form>(tile, steps));
    multiply<kRows>(*some, steps, rows, 0, Ahead{}, wide);
  }
  const bool differs = std::memcmp(alone, together, sizeof alone) || std::memcmp(alone, wide, sizeof alone);
  if (differs) std::printf("%s: the bits of a row depend on the number of rows\n", name);
  return differs;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  int num_wrong = wrong_sums<2>(random) + wrong_sums<3>(random) + wrong_sums<4>(random) + wrong_sums<5>(random) +
                  wrong_sums<6>(random) + wrong_sums<8>(random);
  num_wrong += wrong_products<Q2K>("Q2_K", random) + wrong_products<Q3K>("Q3_K", random) +
               wrong_products<Q4K>("Q4_K", random) + wrong_products<Q5K>("Q5_K", random) +
               wrong_products<Q6K>("Q6_K", random) + wrong_products<IQ4XS>("IQ4_XS", random) +
               wrong_products<IQ4NL>("IQ4_NL", random) + wrong_products<Q80>("Q8_0", random) +
               wrong_products<MXFP4>("MXFP4", random) + wrong_products<NVFP4>("NVFP4", random);
  return num_wrong != 0;
}
