// SPDX-License-Identifier: Apache-2.0
// What Python asks the library about itself, as C functions for ctypes. Strings are JSON, or plain
// messages where the comment says so; they stay valid until the same thread asks again.
//
// The build defines:
//   QUTLASS_VERSION             "0.1.0", the project's version
//   QUTLASS_WITH_CUDA           where the CUDA kernels are compiled in; then also
//   QUTLASS_CUDA_VERSION        "13.0.88", the toolkit's version
//   QUTLASS_CUDA_ARCHITECTURES  "sm_80 sm_86 compute_80", what the kernels were compiled for
//   QUTLASS_CUTLASS_VERSION     "4.2.0", of the headers that were used
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "common/cards.h"
#include "cpu/gemm.h"
#include "gemm/gemm.h"
#include "gemm/left_out.h"
#include "gemm/schedule.h"
#include "gemm/tiles.h"
#include "gemm/tuned.h"
#include "torch/checks.h"

#ifdef QUTLASS_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#define QUTLASS_EXPORT extern "C" __attribute__((visibility("default")))

namespace qutlass::binding {
namespace {

class Json {  // one object, built key by key
 public:
  Json& text(const char* key, const char* value) {
    return value ? raw(key, '"' + escaped(value) + '"') : raw(key, "null");
  }
  Json& number(const char* key, int64_t value) { return raw(key, std::to_string(value)); }
  Json& number(const char* key, double value) {
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%.6g", value);
    return raw(key, digits);
  }
  Json& boolean(const char* key, bool value) { return raw(key, value ? "true" : "false"); }
  std::string str() const { return '{' + body_ + '}'; }

 private:
  Json& raw(const char* key, const std::string& value) {
    body_ += (body_.empty() ? "\"" : ", \"") + std::string(key) + "\": " + value;
    return *this;
  }
  // Values of environment variables may hold anything.
  static std::string escaped(const char* value) {
    std::string text;
    for (; *value; ++value) {
      if (*value == '"' || *value == '\\') text += '\\';
      text += *value >= ' ' && *value <= '~' ? *value : '?';
    }
    return text;
  }

  std::string body_;
};

const char* keep(std::string text) {
  thread_local std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

Json tile_row(int index) {
  const GemmTile& tile = gemm_tile(index);
  Json row;
  row.number("index", int64_t{index})
      .text("op", name_of(tile.op))
      .text("name", tile.name)
      .number("m", int64_t{tile.m})
      .number("n", int64_t{tile.n})
      .number("k", int64_t{tile.k})
      .number("warp_m", int64_t{tile.warp_m})
      .number("warp_n", int64_t{tile.warp_n})
      .number("warp_k", int64_t{tile.warp_k})
      .number("stages", int64_t{tile.stages})
      .number("threads", int64_t{tile.threads})
      .number("smem_bytes", int64_t{tile.smem_bytes})
      .text("instruction", tile.instruction);
  return row;
}

std::optional<GemmOp> family_of(const char* name) {
  for (int i = 0; i < kGemmOpCount; ++i) {
    const GemmOp op = static_cast<GemmOp>(i);
    if (std::strcmp(name, name_of(op)) == 0) return op;
  }
  return std::nullopt;
}

// The limits of a card (sm > 0) or of a device, which QUTLASS_ASSUME_SM replaces by a card's
// whether the device is there or not.
std::string device_for(int sm, int device, DeviceInfo* info) {
  if (sm > 0) {
    const DeviceInfo* card = find_card(sm);
    if (!card) return "sm must be 80, 86, 89 or 90, got " + std::to_string(sm);
    *info = *card;
    return "";
  }
#ifdef QUTLASS_WITH_CUDA
  const Status found = query_device(device, info);
  std::string missing = found.ok() ? "" : found.what;
#else
  std::string missing =
      "this build of qutlass has no CUDA kernels; name a card by sm instead of device " +
      std::to_string(device);
#endif
  const Status assumed = apply_assumption(assumption(), info);
  if (!assumed.ok()) return assumed.what;
  return assumption().card ? "" : missing;
}

// Runs the checks of an operator on the views of its tensors. `numbers` are its other arguments in
// the order of the schema: booleans as 0 or 1, group_size as kNoGroup where None, dtype as a DType.
void run_check(const std::string& op, Views in, const int64_t* numbers, const char* dtype_name) {
  if (op == "pack_int4") {
    check_pack_int4(in);
  } else if (op == "unpack_int4") {
    check_unpack_int4(in);
  } else if (op == "quantize_int8") {
    check_quantize_int8(in, numbers[0], numbers[1]);
  } else if (op == "quantize_int4") {
    check_quantize_int4(in, numbers[0], numbers[1]);
  } else if (op == "dequantize_int8") {
    check_dequantize_int8(in, dtype_of_name(dtype_name), dtype_name);
  } else if (op == "dequantize_int4") {
    check_dequantize_int4(in, dtype_of_name(dtype_name), dtype_name);
  } else if (op == "weight_sums") {
    check_weight_sums(in, numbers[0]);
  } else if (op == "matmul_int8_bf16_tn") {
    check_matmul_int8(in);
  } else if (op == "matmul_w4a4_bf16_tn") {
    check_matmul_w4a4(in);
  } else if (op == "matmul_w4a8_bf16_tn") {
    check_matmul_w4a8(in);
  } else if (op == "matmul_int4_bf16_tn") {
    check_matmul_int4(in, numbers[0]);
  } else {
    throw std::invalid_argument(op + ": no such operator");
  }
}

}  // namespace

// The message that a call of the operator would fail with, or null. `tensors` holds `count` views
// without data in the order of the schema, null where absent; their dtype is read from dtype_name.
QUTLASS_EXPORT const char* qutlass_check(const char* op, TensorView* const* tensors, int count,
                                         const int64_t* numbers, const char* dtype_name) {
  try {
    for (int i = 0; i < count; ++i) {
      if (tensors[i]) tensors[i]->dtype = dtype_of_name(tensors[i]->dtype_name);
    }
    run_check(op, tensors, numbers, dtype_name);
    return nullptr;
  } catch (const std::exception& refusal) {
    return keep(refusal.what());
  }
}

// The rows of the tile table, an array; besides what `explain` says of a row, what the cost model
// takes from tiles.h.
QUTLASS_EXPORT const char* qutlass_gemm_tiles() {
  std::string rows;
  for (int i = 0; i < gemm_tile_count(); ++i) {
    const GemmTile& tile = gemm_tile(i);
    Json row = tile_row(i);
    row.boolean("staged", is_staged(tile.op, tile.m))
        .boolean("swapped", is_swapped(tile.op, tile.m))
        .boolean("folded", is_folded(tile.op, tile.m))
        .number("strip", int64_t{strip_of(tile.op, tile.m, tile.warp_m)});
    rows += (i ? ", " : "") + row.str();
  }
  return keep('[' + rows + ']');
}

// Which row a product would run on, on device `device` or, if `sm` > 0, on a card of that compute
// capability; an object with "error" if none. `tuned` 0: by the selection model, whatever was
// measured on the device; 1: as a call would; 2: by what was measured on the device, even for
// another card (with "error" if nothing was), for the tests.
QUTLASS_EXPORT const char* qutlass_explain(const char* family, int64_t m, int64_t n, int64_t k,
                                           int64_t group_size, int sm, int device, int tuned) {
  const std::optional<GemmOp> op = family_of(family);
  DeviceInfo info;
  std::string error = op ? device_for(sm, device, &info) : "no such kernel family";
  if (!error.empty()) return keep(Json().text("error", error.c_str()).str());
  const GemmProblem problem = {*op, m, n, k, group_size};
  const bool assumed = sm <= 0 && assumption().card;
  GemmConfig config;
  if (tuned == 2 || (tuned == 1 && sm <= 0 && !assumed)) {
    config = find_tuned(problem, device, info);
  }
  const bool measured = config.tile >= 0;
  if (!measured && tuned != 2) config = gemm_select(problem, info);
  if (config.tile < 0) return keep(Json().text("error", "no row runs this problem").str());

  const GemmTile& tile = gemm_tile(config.tile);
  // CUDA reserves 1 KiB of shared memory a block. Registers can only lower what is resident.
  const int threads_per_sm = info.sm == 80 || info.sm >= 90 ? 2048 : 1536;
  const int resident = std::max(
      1, std::min(info.smem_per_sm / (tile.smem_bytes + 1024), threads_per_sm / tile.threads));
  const int64_t blocks = make_schedule(m, n, k, tile.m, tile.n, tile.k, group_size, config.split_k,
                                       resident * info.sm_count, 1)
                             .blocks;
  const bool int4_products = *op == GemmOp::kW4A4;
  return keep(Json()
                  .text("op", family)
                  .text("tile", tile.name)
                  .number("index", int64_t{config.tile})
                  .text("instruction", tile.instruction)
                  .boolean("emulated", int4_products && !info.native_int4())
                  .number("split_k", int64_t{config.split_k})
                  .number("smem_bytes", int64_t{tile.smem_bytes})
                  .number("threads", int64_t{tile.threads})
                  .number("blocks", blocks)
                  .number("waves", static_cast<double>(blocks) / (resident * info.sm_count))
                  .number("sm", int64_t{info.sm})
                  .number("sm_count", int64_t{info.sm_count})
                  .boolean("tuned", measured)
                  .boolean("assumed", assumed)
                  .str());
}

// 1 if a row can run a problem with a split of k on a device, 0 if not, -1 if there is no such
// kernel family, device or row.
QUTLASS_EXPORT int qutlass_gemm_legal(const char* family, int tile, int split_k, int64_t m,
                                      int64_t n, int64_t k, int64_t group_size, int sm,
                                      int device) {
  const std::optional<GemmOp> op = family_of(family);
  DeviceInfo info;
  if (!op || !device_for(sm, device, &info).empty()) return -1;
  if (tile < 0 || tile >= gemm_tile_count()) return -1;
  return gemm_config_legal({*op, m, n, k, group_size}, {tile, split_k}, info);
}

// Who is asked for the tuned choices of a device when one is first wanted there, see gemm/tuned.h.
QUTLASS_EXPORT void qutlass_tuned_loader(TunedLoader loader) { set_tuned_loader(loader); }

// The part of the signature of tuned choices that is not the rows of the table.
QUTLASS_EXPORT int qutlass_tuned_version() { return kTunedVersion; }

// Replaces the tuned choices of a device: `count` times M, N, K, group size, row, split of k. The
// row says the kernel family. False, and nothing is replaced, if there is no such row.
QUTLASS_EXPORT bool qutlass_tuned_set(int device, const int64_t* choices, int count) {
  std::vector<TunedChoice> all;
  for (const int64_t* c = choices; c != choices + 6 * static_cast<int64_t>(count); c += 6) {
    if (c[4] < 0 || c[4] >= gemm_tile_count()) return false;
    const int tile = static_cast<int>(c[4]);
    all.push_back({{gemm_tile(tile).op, c[0], c[1], c[2], c[3]}, {tile, static_cast<int>(c[5])}});
  }
  set_tuned(device, std::move(all));
  return true;
}

// What QUTLASS_ASSUME_SM says: "sm", the card's or 0, and "error", or null.
QUTLASS_EXPORT const char* qutlass_assumption() {
  const Assumption& assumed = assumption();
  return keep(Json()
                  .number("sm", int64_t{assumed.card ? assumed.card->sm : 0})
                  .text("error", assumed.error.empty() ? nullptr : assumed.error.c_str())
                  .str());
}

// What is compiled in.
QUTLASS_EXPORT const char* qutlass_build_info() {
  Json info;
  info.text("version", QUTLASS_VERSION);
#ifdef QUTLASS_WITH_CUDA
  info.text("cuda", QUTLASS_CUDA_VERSION).text("archs", QUTLASS_CUDA_ARCHITECTURES);
  info.text("cutlass", QUTLASS_CUTLASS_VERSION);
  // The newest CUDA that the installed driver runs, as 13000; 0 without a driver.
  int driver = 0;
  cudaDriverGetVersion(&driver);
  info.number("driver_cuda", int64_t{driver});
#else
  info.text("cuda", nullptr).text("archs", "").text("cutlass", nullptr);
  info.number("driver_cuda", int64_t{0});
#endif
  constexpr int64_t kMinor = (TORCH_TARGET_VERSION >> 48) & 0xFF;
  constexpr int64_t kMajor = TORCH_TARGET_VERSION >> 56;
  const std::string torch_target = std::to_string(kMajor) + '.' + std::to_string(kMinor);
  info.text("torch_abi", torch_target.c_str());
  info.text("cpu_isa", cpu::gemm_isa());
#ifdef __clang__
  info.text("compiler", __VERSION__);  // names itself
#else
  info.text("compiler", "GCC " __VERSION__);
#endif
  info.text("left_out", kLeftOut == Part::kNothing ? nullptr : name_of(kLeftOut));
  return keep(info.str());
}

}  // namespace qutlass::binding
