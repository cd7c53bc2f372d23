"""The fields of requests and answers, one file per endpoint or object."""
