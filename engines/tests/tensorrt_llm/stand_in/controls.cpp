#include "tests/tensorrt_llm/stand_in/controls.h"

namespace r1v::stand_in {

Controls& controls() {
  static Controls controls;
  return controls;
}

}  // namespace r1v::stand_in
