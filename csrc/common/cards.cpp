// SPDX-License-Identifier: Apache-2.0
#include "common/cards.h"

#include <cstdlib>

namespace qutlass {

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
