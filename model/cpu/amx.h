// Products in tiles, eight registers of 16 rows of 64 bytes: Intel's AMX.
//
// A tile of rows (16 of them, 32 inputs in bfloat16 or 64 in bytes) times a tile of columns (16 pairs or quads of inputs,
// 16 columns) is added to a tile of 16 rows and 16 columns by one instruction. Source: Intel 64 and IA-32 Architectures
// Software Developer's Manual, volume 1, chapter 18; volume 2, TDPBF16PS, TDPBSUD.
//
// TDPBF16PS sums the products of the even inputs of its 32 and those of the odd ones, in float32, then adds both to the
// tile. That is another order than that of the other builds, so there are tiles for every number of rows, or for none.
#pragma once

#include "vector.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define CARAVAN_TILES
#include <ATen/cpu/Utils.h>
#endif

namespace caravan {

#ifdef CARAVAN_TILES
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = 64;             // of a row
constexpr int64_t kTiledRows = 2 * kTileRows;  // rows that share each load of columns

// Whether the operating system gives room to save tiles in; it is asked once.
inline bool has_tiles() {
  static const bool is_allowed = at::cpu::init_amx();
  return is_allowed;
}

// The sums of up to 32 rows and 32 columns, in registers 0 to 3, while it lives. 4 and 5 are for rows, 6 and 7 for columns.
//
// The instructions are written out, since the compiler's functions do not declare that they read memory.
class TileSums {
 public:
  ~TileSums() {
    if (num_rows_) asm volatile("tilerelease");
  }

  // Set the sums of num_rows rows to zero; products of the bytes of each row are added to them.
  void begin(int64_t num_rows, int64_t row_bytes) {
    if (num_rows != num_rows_ || row_bytes != row_bytes_) configure(num_rows, row_bytes);
    asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
  }

  // Continue with sums [num_rows][32] that were written, at this stride in bytes.
  void resume(int64_t num_rows, int64_t row_bytes, const void* from, int64_t stride) {
    if (num_rows != num_rows_ || row_bytes != row_bytes_) configure(num_rows, row_bytes);
    const char* half = (const char*)from + kTileBytes;
    load<0>(from, stride);
    load<1>(half, stride);
    if (!is_double()) return;
    load<2>((const char*)from + kTileRows * stride, stride);
    load<3>(half + kTileRows * stride, stride);
  }

  // Add rows [num_rows][row_bytes], at this stride in bytes, times 32 columns [row_bytes / 4 pairs or quads][16], 16 here and
  // 16 there.
  template <class Factor>
  void add(const void* rows, int64_t row_stride, const void* left, const void* right, int64_t column_stride) {
    load<6>(left, column_stride);
    load<7>(right, column_stride);
    load<4>(rows, row_stride);
    multiply<Factor, 0, 4, 6>();
    multiply<Factor, 1, 4, 7>();
    if (!is_double()) return;
    load<5>((const char*)rows + kTileRows * row_stride, row_stride);
    multiply<Factor, 2, 5, 6>();
    multiply<Factor, 3, 5, 7>();
  }

  // Add rows times columns [row_bytes / 4][32].
  template <class Factor>
  void add(const void* rows, int64_t row_stride, const void* columns) {
    add<Factor>(rows, row_stride, columns, (const char*)columns + kTileBytes, 2 * kTileBytes);
  }

  // Write the sums [num_rows][32] at this stride in bytes.
  void store(void* to, int64_t stride) const {
    char* half = (char*)to + kTileBytes;
    store<0>(to, stride);
    store<1>(half, stride);
    if (!is_double()) return;
    store<2>((char*)to + kTileRows * stride, stride);
    store<3>(half + kTileRows * stride, stride);
  }

 private:
  void configure(int64_t num_rows, int64_t row_bytes) {
    num_rows_ = num_rows, row_bytes_ = row_bytes;
    const uint16_t bytes = row_bytes, first = std::min(num_rows, kTileRows);
    const uint16_t second = is_double() ? num_rows - kTileRows : kTileRows, pairs = row_bytes / 4;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i : {0, 1, 2, 3, 6, 7}) shapes.row_bytes[i] = kTileBytes;
    for (int i : {4, 5}) shapes.row_bytes[i] = bytes;
    for (int i : {0, 1, 4}) shapes.rows[i] = first;
    for (int i : {2, 3, 5}) shapes.rows[i] = second;
    for (int i : {6, 7}) shapes.rows[i] = pairs;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }

  bool is_double() const { return num_rows_ > kTileRows; }

  template <int kTile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }

  template <int kTile>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }

  template <class Factor, int kSums, int kRows, int kColumns>
  static void multiply() {
    if constexpr (std::is_same_v<Factor, Pair>)
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kColumns));
    else  // signed bytes of rows, unsigned ones of columns
      asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kColumns));
  }

  int64_t num_rows_ = 0, row_bytes_ = 0;
};
#else
constexpr int64_t kTiledRows = 1;
constexpr bool has_tiles() { return false; }
struct TileSums {
  void begin(int64_t, int64_t) {}
  template <class Factor>
  void add(const void*, int64_t, const void*) {}
};
#endif

}  // namespace caravan
