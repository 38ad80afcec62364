"""Questions for people who have none: drafted from chunks of the index, filtered, with their evidence."""
