#include "launch/place.h"

#include "launch/dry.h"
#include "launch/fallback.h"
#include "launch/learn.h"
#include "launch/probe.h"

namespace bringup {

Placement place(const Call& call) {
  if (call.op.is_view) return {Answer::View};
  Signature& signature = *call.signature;
  refuse_overlaps(signature, call.slots);
  int state = signature.state.load(std::memory_order_acquire);
  bool first = state == Signature::Unknown;
  if (first && learn(signature, call.slots, call.arguments)) state = Signature::Known;
  bool fallback = where_of(signature) == Where::Host;
  if (fallback) refuse_if_strict(signature, config().chip);
  bool dry = C10_UNLIKELY(is_dry());
  if (dry && signature.doubtful) {  // no launch follows that could refuse it
    Results promised = signature;
    judge(signature, call.slots, call.arguments, promised);
  }
  bool is_known = state == Signature::Known;
  if (fallback && !(is_known && dry)) return {Answer::Host, first, fallback};
  if (!is_known || (signature.doubtful && !dry)) return {Answer::Synchronous, first, fallback};
  return {dry ? Answer::Dry : Answer::Chip, first, fallback};
}

}  // namespace bringup
