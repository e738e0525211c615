// How `run` shows answers: the reasoning dimmed on a terminal, inside its tags elsewhere.
#pragma once

#include "r1v/r1v.hpp"

namespace r1v::cli {

class Show {
 public:
  explicit Show(bool answer_only);

  void event(const api::Event& event);
  // After the last event; says on stderr why an answer ended that did not end by itself.
  void end(const api::Answer& answer);

 private:
  bool answer_only_, dimmed_, thinking_ = false;
};

}  // namespace r1v::cli
