#include "runner/batching/job.h"

#include <gtest/gtest.h>

#include "tests/text/byte_tokenizer.h"

namespace r1v {
namespace {

JobPointer job_of(const std::string& client) {
  static const Tokenizer tokenizer = byte_tokenizer();
  AnswerText text(Detokenizer(tokenizer), {}, std::nullopt, {"<think>", "</think>"});
  return std::make_shared<Job>(Prompt{}, Sampling{}, AnswerStream(std::move(text), {}, 1),
                               JobOptions{client, std::nullopt});
}

TEST(JobQueue, ClientsTakeTurnsAndEachClientsJobsComeInTheirOrder) {
  const std::vector<JobPointer> jobs = {job_of("a"), job_of("a"), job_of("a"), job_of("b"), job_of("c"), job_of("b")};
  JobQueue queue;
  for (const JobPointer& job : jobs) queue.add(job);
  for (const size_t expected : {0, 3, 4, 1, 5, 2}) EXPECT_EQ(queue.pop(), jobs[expected]);
  EXPECT_EQ(queue.size(), 0u);
}

TEST(JobQueue, WhatIsGivenUpIsTakenOut) {
  const std::vector<JobPointer> jobs = {job_of("a"), job_of("a"), job_of("b")};
  JobQueue queue;
  for (const JobPointer& job : jobs) queue.add(job);
  jobs[0]->cancelled = jobs[2]->cancelled = true;
  EXPECT_EQ(queue.take_given_up(), jobs[0]);
  EXPECT_EQ(queue.take_given_up(), jobs[2]);
  EXPECT_EQ(queue.take_given_up(), nullptr);
  EXPECT_EQ(queue.size(), 1u);
  EXPECT_EQ(queue.pop(), jobs[1]);
}

TEST(Job, AnErrorComesInThePlaceOfTheEventsAndNothingBehindIt) {
  const JobPointer job = job_of("");
  job->push(AnswerEvent{7, {}, std::nullopt});
  job->push(std::make_exception_ptr(std::runtime_error("broken")));
  job->push(AnswerEvent{8, {}, Answer{}});
  EXPECT_EQ(job->next()->token_id, 7);
  EXPECT_THROW(job->next(), std::runtime_error);
  EXPECT_FALSE(job->next());
}

}  // namespace
}  // namespace r1v
