"""The use cases: each a frozen request, run(job, watcher) and its result. The command line only parses and prints."""
