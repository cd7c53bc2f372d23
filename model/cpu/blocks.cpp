// Weights as GGUF files have them, packed into tiles of the same bits, or widened.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "gguf_blocks.h"

namespace caravan {
namespace {

template <class Number>
bool is_finite(uint32_t bits) {
  constexpr uint32_t kExponent =
      std::is_same_v<Number, float> ? 0x7f800000 : std::is_same_v<Number, bf16> ? 0x7f80 : 0x7c00;
  return (bits & kExponent) != kExponent;
}

// Where the file's rows of a weight lie, in the order of the outputs.
std::vector<const uint8_t*> row_starts(const std::vector<at::Tensor>& stored, const std::vector<at::Tensor>& orders) {
  std::vector<const uint8_t*> starts;
  for (size_t i = 0; i < stored.size(); i++) {
    const uint8_t* bytes = stored[i].const_data_ptr<uint8_t>();
    const int64_t *order = orders[i].const_data_ptr<int64_t>(), stride = stored[i].size(1);
    for (int64_t row = 0; row < orders[i].size(0); row++) starts.push_back(bytes + order[row] * stride);
  }
  return starts;
}

// Pack one block of each of up to 32 rows into a tile, in the layout of block_forms.h. Returns whether all scales are
// finite.
template <class Kind>
bool pack_block(const uint8_t* const* rows, int64_t num_rows, int64_t offset, uint8_t* to) {
  using Form = typename Kind::Form;
  using Number = typename Form::Number;
  using Tile = BlockTile<Form>;
  constexpr bool kHasTwoLevels = Form::kHeadBytes != 0;
  constexpr int kParts = Tile::kParts;
  bool all_finite = true;
  std::memset(to, 0, Tile::kBlockBytes);
  for (int64_t output = 0; output < num_rows; output++) {
    Block block;
    Kind::unpack(rows[output] + offset, block);
    auto set_number = [&](uint8_t* numbers, uint32_t bits) {
      std::memcpy(numbers + output * sizeof(Number), &bits, sizeof(Number));
      all_finite &= is_finite<Number>(bits);
    };
    uint8_t* pair = kHasTwoLevels ? to : to + Form::kHeadBytes;  // d and dmin, or the scale and the offset
    set_number(pair, block.d);
    if constexpr (Form::kHasOffset) set_number(pair + sizeof(Number) * kColumns, block.dmin);
    for (int g = 0; g < Form::kGroupsOfBlock; g++) {
      uint8_t* group = to + Form::kHeadBytes + g * Tile::kGroupBytes;
      if constexpr (kHasTwoLevels)
        for (int part = 0; part < kParts; part++) {
          group[part * kColumns + output] = block.scales[g * kParts + part];
          if constexpr (Form::kHasOffset) group[(kParts + part) * kColumns + output] = block.mins[g * kParts + part];
        }
      for (int quad = 0; quad < kGroup / 4; quad++)
        Form::Values::set(group + Form::kScaleBytes, quad, output,
                          load<uint32_t>(block.values + g * kGroup + quad * 4));
    }
  }
  return all_finite;
}

template <class Kind>
bool pack(const std::vector<const uint8_t*>& rows, int64_t num_blocks, uint8_t* to) {
  constexpr int64_t kBytes = BlockTile<typename Kind::Form>::kBlockBytes;
  std::atomic<bool> all_finite = true;
  const int64_t num_rows = rows.size();
  share_out(divide_up(num_rows, kColumns), [&](int64_t tile) {
    const int64_t first = tile * kColumns;
    for (int64_t i = 0; i < num_blocks; i++)
      if (!pack_block<Kind>(&rows[first], std::min(kColumns, num_rows - first), i * Kind::kBytes,
                            to + (tile * num_blocks + i) * kBytes))
        all_finite = false;
  });
  return all_finite;
}

template <class Kind>
void widen(const uint8_t* from, float* to) {
  using Form = typename Kind::Form;
  Block block;
  Kind::unpack(from, block);
  using Number = typename Form::Number;
  const float d = as_float<Number>(block.d), dmin = as_float<Number>(block.dmin);
  for (int i = 0; i < Kind::kInputs; i++) {
    const int part = i / Form::kPart;
    int value = block.values[i];
    if constexpr (requires { Form::Values::kTable; }) value = Form::Values::kTable[value];
    float scale = d;
    if constexpr (Form::kHeadBytes != 0) scale *= Form::Scales::widen(block.scales[part]);
    const float offset = !Form::kHasOffset ? 0 : Form::kHeadBytes ? -(dmin * block.mins[part]) : dmin;
    to[i] = scale * (float)(value - Form::kZero) + offset;
  }
}

bool pack_blocks(std::vector<at::Tensor> stored, std::vector<at::Tensor> orders, c10::string_view kind, at::Tensor packed) {
  bool all_finite = false;
  const auto rows = row_starts(stored, orders);
  const bool is_known = with_block(kind, [&](auto block) {
    using Kind = decltype(block);
    const int64_t num_blocks = stored[0].size(1) / Kind::kBytes;
    const int64_t num_bytes = divide_up(rows.size(), kColumns) * num_blocks * BlockTile<typename Kind::Form>::kBlockBytes;
    TORCH_CHECK_VALUE(packed.numel() == num_bytes, "the packed weight has ", num_bytes, " bytes");
    all_finite = pack<Kind>(rows, num_blocks, packed.mutable_data_ptr<uint8_t>());
  });
  TORCH_CHECK_VALUE(is_known, "there are no blocks of the kind ", kind);
  return all_finite;
}

bool are_finite(const at::Tensor& stored, c10::string_view kind) {
  std::atomic<bool> all_finite = true;
  const bool is_known = with_block(kind, [&](auto block) {
    using Kind = decltype(block);
    using Number = typename Kind::Form::Number;
    const uint8_t* bytes = stored.const_data_ptr<uint8_t>();
    share_out(stored.size(0), [&](int64_t row) {
      for (int64_t at = 0; at < stored.size(1); at += Kind::kBytes) {
        Block unpacked;
        Kind::unpack(bytes + row * stored.size(1) + at, unpacked);
        if (!is_finite<Number>(unpacked.d) || (Kind::Form::kHasOffset && !is_finite<Number>(unpacked.dmin)))
          all_finite = false;
      }
    });
  });
  TORCH_CHECK_VALUE(is_known, "there are no blocks of the kind ", kind);
  return all_finite;
}

at::Tensor widen_rows(const at::Tensor& stored, const at::Tensor& wanted, c10::string_view kind) {
  at::Tensor wide;
  const at::Tensor rows = wanted.contiguous();
  const int64_t num_rows = rows.size(0), *row = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < num_rows; i++)
    TORCH_CHECK_INDEX(0 <= row[i] && row[i] < stored.size(0), "row ", row[i], " of ", stored.size(0));
  const bool is_known = with_block(kind, [&](auto block) {
    using Kind = decltype(block);
    const int64_t num_blocks = stored.size(1) / Kind::kBytes;
    wide = at::empty({num_rows, num_blocks * Kind::kInputs}, at::kFloat);
    float* to = wide.mutable_data_ptr<float>();
    share_out(num_rows, [&](int64_t i) {
      const uint8_t* from = stored.const_data_ptr<uint8_t>() + row[i] * stored.size(1);
      for (int64_t j = 0; j < num_blocks; j++)
        widen<Kind>(from + j * Kind::kBytes, to + (i * num_blocks + j) * Kind::kInputs);
    });
  });
  TORCH_CHECK_VALUE(is_known, "there are no blocks of the kind ", kind);
  return wide;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.def("pack_blocks(Tensor[] stored, Tensor[] orders, str kind, Tensor(a!) packed) -> bool", pack_blocks);
  m.def("are_finite(Tensor stored, str kind) -> bool", are_finite);
  m.def("widen_rows(Tensor stored, Tensor rows, str kind) -> Tensor", widen_rows);
}

}  // namespace caravan
