-- Where the replicas last kept a checkpoint together. A place of that name which holds nothing has
-- lost it.
ALTER TABLE store_meta ADD COLUMN shared_place TEXT;
