"""Tasks, regions, options and answers: the types that library, server and client share."""
