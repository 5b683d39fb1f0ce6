// SPDX-License-Identifier: Apache-2.0
#include "common/cards.h"

#include <cstdlib>

namespace qutlass {
namespace {

// The limits are those of the CUDA programming guide's table of compute capabilities, the rest the
// data sheets' of the A100 40 GB, RTX 3090, RTX 4090 and H200.
constexpr DeviceInfo kCards[] = {
    {80, 108, 163 << 10, 164 << 10, int64_t{40} << 20, 1.555e12},
    {86, 82, 99 << 10, 100 << 10, int64_t{6} << 20, 0.936e12},
    {89, 128, 99 << 10, 100 << 10, int64_t{72} << 20, 1.008e12},
    {90, 132, 227 << 10, 228 << 10, int64_t{50} << 20, 4.8e12},
};

}  // namespace

const DeviceInfo* find_card(int sm) {
  for (const DeviceInfo& card : kCards) {
    if (card.sm == sm) return &card;
  }
  return nullptr;
}

Assumption parse_assumption(const char* value) {
  Assumption result;
  if (!value || !*value) return result;
  for (const DeviceInfo& card : kCards) {
    if (value == std::to_string(card.sm)) result.card = &card;
  }
  if (!result.card) {
    result.error = "QUTLASS_ASSUME_SM must be 80, 86, 89 or 90, got '" + std::string(value) + "'";
  }
  return result;
}

const Assumption& assumption() {
  static const Assumption of_environment = parse_assumption(std::getenv("QUTLASS_ASSUME_SM"));
  return of_environment;
}

Status apply_assumption(const Assumption& assumed, DeviceInfo* info) {
  if (!assumed.error.empty()) return Status::invalid(assumed.error.c_str());
  if (!assumed.card) return Status::success();
  if (info->sm > 0 && info->smem_per_block < assumed.card->smem_per_block) {
    return Status::unsupported(
        "QUTLASS_ASSUME_SM names a card with more shared memory a block than this GPU has");
  }
  *info = *assumed.card;
  return Status::success();
}

}  // namespace qutlass
