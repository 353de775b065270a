#include "launch/place.h"

#include "launch/dry.h"
#include "launch/fallback.h"
#include "launch/learn.h"
#include "launch/plan.h"
#include "launch/probe.h"

namespace bringup {

namespace {

// True if a plan is in force and the launch runs on the host: by the plan, or because the chip does not support it.
bool on_host_by_plan(const Call& call, bool fallback) {
  Planned planned = planned_side(call.op.name, current_line());
  if (fallback && planned != Planned::Host) refuse_if_strict(*call.signature, config().chip);
  bool on_host = (planned == Planned::Host || fallback) && !call.stream->capture;
  count_planned(call.op.name, planned, on_host);
  return on_host;
}

}  // namespace

Placement place(const Call& call) {
  if (call.op.is_view) return {Answer::View};
  Signature& signature = *call.signature;
  refuse_overlaps(signature, call.slots);
  int state = signature.state.load(std::memory_order_acquire);
  bool first = state == Signature::Unknown;
  if (first && learn(signature, call.slots, call.arguments)) state = Signature::Known;
  bool fallback = where_of(signature) == Where::Host;
  bool planned = C10_UNLIKELY(has_plan()) && on_host_by_plan(call, fallback);
  if (fallback && !planned) refuse_if_strict(signature, config().chip);
  bool dry = C10_UNLIKELY(is_dry());
  if (dry && signature.doubtful) {  // no launch follows that could refuse it
    Results promised = signature;
    judge(signature, call.slots, call.arguments, promised);
  }
  bool is_known = state == Signature::Known;
  if (fallback && !planned && !(is_known && dry)) return {Answer::Host, first, fallback};
  if (!is_known || (signature.doubtful && !dry)) return {Answer::Synchronous, first, fallback, planned};
  return {dry ? Answer::Dry : Answer::Chip, first, fallback, planned};
}

}  // namespace bringup
