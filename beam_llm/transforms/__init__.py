"""The transforms, and their steps: wiring only. What is asked, and how, is in the rooms below.

predict, embed, chat, reduce     the transforms; `LLMPredict.expand` is where to begin
batch_jobs                       submitted today, collected another day
front_door, options              what they are all made by
fields                           elements as a prompt knows them
forming, forming_streams         elements → prompt batches, in a bundle or across bundles
live, job_guard                  prompt batches → Predictions, by live calls
spooling, planning, driving      elements → parts → jobs → Predictions, by the batch API
waiting                          the splittable DoFn that waits for jobs
routing                          a model for each element
delivering, rows                 Predictions → what goes out
preview                          the requests, without a call
sessions, answering_sessions     the steps of `LLMChat`
groups, reducing                 the steps of `LLMReduce`
envelopes, coders, plain_coders, named_classes    elements and Predictions as bytes
metrics, gc_tuning, runners      counters; less for the collector to do; which runner it is
beam_internals                   all that Beam does not promise
"""
