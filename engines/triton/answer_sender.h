// Responses of all answers, sent by a thread of their own: decoding does not wait until the server has taken them
// (r1v_export/deploy/triton/models/answer_sender.py).
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "triton/open_answer.h"

namespace r1v::triton {

// A response has what has gathered for its request since the one before: one token where the server keeps up, several
// where it does not.
class AnswerSender {
 public:
  using AnswerPointer = std::shared_ptr<OpenAnswer>;

  // `look`: called after each answer's end, and now and then while there are answers.
  explicit AnswerSender(std::function<void()> look);
  ~AnswerSender() { close(); }
  // Ends unfinished answers as cancelled, and sends what is left.
  void close();

  // Takes an answer's event; any thread may. Nothing is sent before `open`.
  void add(const AnswerPointer& answer, JobResult result);
  // Ends an answer that was not begun by an error.
  void refuse(AnswerPointer answer, std::exception_ptr error);
  // Begins to send an answer, and to see whether it is cancelled.
  void open(const AnswerPointer& answer, std::unique_ptr<Generation> generation);

 private:
  using Clock = std::chrono::steady_clock;

  struct Refused {
    AnswerPointer answer;
    std::exception_ptr error;
    Clock::time_point due;
  };

  void run();
  // Whether there is something to send now.
  bool has_due() const;
  // Sends an answer's error, or what one has gathered; called with the lock, which it leaves meanwhile.
  void send_next(std::unique_lock<std::mutex>* lock);
  // Sends what an answer has gathered.
  void send(const AnswerPointer& answer, const std::vector<JobResult>& results);
  void end_cancelled();

  const std::function<void()> look_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<AnswerPointer> open_;
  std::deque<AnswerPointer> waiting_;  // those that have something to send
  std::deque<Refused> refused_;
  bool closing_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace r1v::triton
